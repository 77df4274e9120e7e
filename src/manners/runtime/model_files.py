"""The files that a model's name stands for on this machine, and a digest of their content.

A name is no proof of what is loaded: a folder can be overwritten, and a branch on the hub moves. Large files are hashed
once: their digests are kept in the user's cache, under path, size and times of the file.
"""

import hashlib
import os
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from manners.runtime import hub
from manners.runtime.atomic_io import atomic_write
from manners.runtime.paths import existing_path

# Weights, config, generation config, tokenizer and chat template, of adapters and reward models too.
PATTERNS = (
    *("*.safetensors", "*.index.json", "*config.json", "*token*", "vocab*", "merges.txt", "*.model", "*.jinja"),
    "normalizer.json",
)
LARGE = 50_000_000  # bytes; smaller files are hashed at each start, in a tenth of a second


def model_folder(name: str, revision: str | None = None, download: bool = False) -> Path | None:
    """The folder of a model: in the package, a local one, or a snapshot in the hub's cache; None where there is none.

    With ``download`` the files of a hub model are fetched first, so that they are those that loading will read.
    """
    if name == "tiny":
        return Path(str(files("manners.models") / "tiny"))
    if local := existing_path(name):
        return local
    offline = hub.go_offline_if_unreachable() or not download
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(PATTERNS),
                ignore_patterns=["*/*"],  # other formats of the same weights
                local_files_only=offline,
            )
        )
    except Exception:  # noqa: BLE001  loading the model reports it
        return None


def model_digest(name: str, revision: str | None = None, download: bool = False) -> str:
    """Twelve hex digits over the content of a model; "" where it is not on this machine."""
    folder = model_folder(name, revision, download)
    return folder_digest(folder) if folder else ""


def folder_digest(folder: Path) -> str:
    """Twelve hex digits over the names and contents of the files in a folder from which a model is loaded."""
    sha = hashlib.sha256()
    for file in sorted({file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file()}):
        stat = file.stat()
        content = content_digest(str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        sha.update(f"{file.name} {content}\n".encode())
    return sha.hexdigest()[:12]


@lru_cache(maxsize=256)
def content_digest(path: str, size: int, *times: int) -> str:
    """The SHA-256 of a file; of a large one that has not changed since it was hashed last, from the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "manners" / "digests"
    entry = cache / hashlib.sha256(repr((path, size, times)).encode()).hexdigest()
    if size >= LARGE:
        with suppress(OSError):
            return entry.read_text()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if size >= LARGE:
        with suppress(OSError):  # a cache that cannot be written costs time alone
            cache.mkdir(parents=True, exist_ok=True)
            with atomic_write(entry) as written:
                written.write(digest.encode())
    return digest
