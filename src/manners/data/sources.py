"""Where a dataset is: in the package, in a local file or folder, or on the hub. Loads no rows."""

import re
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path

import yaml

from manners.data.files import ARROW, FILE_SUFFIXES, OPEN, file_kind
from manners.errors import MannersError, did_you_mean
from manners.runtime.paths import CONF, existing_path

CORPORA = Path(str(files("manners.data") / "corpora"))
DISTILLED = "outputs/distilled.jsonl"  # of conf/dataset/distilled.yaml
NO_TEXT = re.compile(r"(licen[cs]e|readme|notice|copying|changelog|requirements|citation)\b.*\.txt", re.IGNORECASE)
NOT_DATA = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}  # the datasets library's own


def local_path(path: str, key: str = "dataset.path") -> Path | None:
    """The file or folder that ``path`` names, or None for a hub name such as 'org/name'.

    Raises MannersError, with the option's ``key``, if ``path`` can only be local and does not exist.
    """
    if path.startswith("package:"):
        corpus = CORPORA / path.removeprefix("package:")
        if not corpus.exists():
            names = [p.name for p in CORPORA.iterdir() if p.is_dir()]
            raise MannersError(f"{key}={path}: no such corpus in the package. {did_you_mean(corpus.name, names)}")
        return corpus
    if local := existing_path(path):
        return local
    if path.startswith(("/", ".", "~")) or path.lower().endswith((*FILE_SUFFIXES, *OPEN)) or path.count("/") != 1:
        missing = Path(path)
        parent = existing_path(str(missing.parent))
        names = [p.name for p in parent.glob("*")] if parent else []
        if path == DISTILLED:
            raise MannersError(f"{key}={path}: there is no such file yet. Write it: python -m manners.distill", key)
        hint = did_you_mean(missing.name, names) if names else f"There is nothing in {missing.parent}."
        hint = f"{missing.parent} has {len(names)} others." if hint.startswith("Known") and len(names) > 12 else hint
        raise MannersError(f"{key}={path}: there is no such file or folder. {hint}")
    return None


def is_hub_folder(path: Path) -> bool:
    """Whether a folder is a hub dataset, as ``hf download`` or ``save_to_disk`` write it.

    Its data is Arrow's alone, and its card or the datasets library's own files say what is in it.
    """
    data, others = folder_files(path) if path.is_dir() else ([], [])
    described = {p.name for p in others if p.parent == path} & {"README.md", *NOT_DATA}
    return bool(data) and bool(described) and {file_kind(file) for file in data} <= set(ARROW)


def data_files(path: Path) -> list[Path]:
    """The data files of a folder, sorted, or the one file. Raises MannersError where there are none."""
    known = f"{', '.join(FILE_SUFFIXES)} (also with {', '.join(OPEN)})"
    if path.is_file():
        if file_kind(path) not in ("", *FILE_SUFFIXES):
            raise MannersError(f"dataset.path={path}: {file_kind(path)} files cannot be read. Known: {known}.")
        return [path]
    data, _ = folder_files(path)
    if not data:
        raise MannersError(f"dataset.path={path}: the folder has no file that ends in {known}.")
    return data


def folder_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files below a folder, hidden ones aside, sorted: those with data, and those that are left out.

    A .txt file is data where there are no others: it may be a license. Raises MannersError for a file that seems to be
    there twice, such as a.jsonl and a.jsonl.gz.
    """
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    data = [p for p in files if file_kind(p) in FILE_SUFFIXES and p.name not in NOT_DATA]
    if {file_kind(p) for p in data} - {".txt"}:
        data = [p for p in data if file_kind(p) != ".txt"]
    data = [p for p in data if not NO_TEXT.match(p.name)]
    stems: dict[Path, Path] = {}
    for file in data:
        stem = file.with_suffix("") if file.suffix.lower() in OPEN else file
        if stem in stems:
            a, b = stems[stem].relative_to(folder), file.relative_to(folder)
            raise MannersError(f"dataset.path={folder}: {a} and {b} seem to hold the same rows: take one of them away.")
        stems[stem] = file
    return data, sorted(set(files) - set(data))


def datasets_offering(sample_type: str) -> list[str]:
    """The names in ``conf/dataset`` whose ``sample_types`` offer ``sample_type``."""
    names = []
    for path in sorted((CONF / "dataset").glob("*.yaml")):
        offered = (yaml.safe_load(path.read_text()) or {}).get("sample_types", ["conversation", "prompt"])
        names += [path.stem] if offers(offered, sample_type) else []
    return names


def offers(sample_types: Collection[str], needed: str) -> bool:
    """Whether data of ``sample_types`` has the one that is ``needed``: a pair is also two labeled replies."""
    return needed in sample_types or (needed == "unpaired_preference" and "preference" in sample_types)
