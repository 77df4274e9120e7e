"""Where a dataset is: in the package, in a local file or folder, or on the hub. Loads no rows."""

import json
from importlib.resources import files
from pathlib import Path

import yaml

from manners.data import csv_files
from manners.errors import MannersError, did_you_mean
from manners.runtime.paths import CONF, existing_path

CORPORA = Path(str(files("manners.data") / "corpora"))
FILE_SUFFIXES = (".jsonl", ".json", ".txt", ".csv")


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
    if path.startswith(("/", ".", "~")) or path.endswith(FILE_SUFFIXES) or path.count("/") != 1:
        missing = Path(path)
        parent = existing_path(str(missing.parent))
        names = [p.name for p in parent.glob("*")] if parent else []
        hint = did_you_mean(missing.name, names) if names else f"There is nothing in {missing.parent}."
        raise MannersError(f"{key}={path}: there is no such file or folder. {hint}")
    return None


def is_parquet_folder(path: Path) -> bool:
    """Whether a folder is a hub dataset in Parquet, as ``hf download`` writes it."""
    return path.is_dir() and any(path.rglob("*.parquet"))


def data_files(path: Path) -> list[Path]:
    """The data files of a folder, sorted, or the one file. Raises MannersError for a folder without data files."""
    if path.is_file():
        return [path]
    data = sorted(p for p in path.iterdir() if p.suffix in FILE_SUFFIXES)
    if not data:
        raise MannersError(f"dataset.path={path}: the folder has no file that ends in {', '.join(FILE_SUFFIXES)}.")
    return data


def count_rows(path: Path) -> int:
    """The number of rows in a file, without parsing them: its non-blank lines, or the entries of a .json list."""
    if path.suffix == ".csv":
        return csv_files.count_csv_rows(path)
    if path.suffix == ".json":
        try:
            rows = json.loads(path.read_text("utf-8-sig"))
        except (ValueError, RecursionError):  # loading reports what is wrong with the file
            return 0
        return len(rows) if isinstance(rows, list) else 0
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def datasets_offering(sample_type: str) -> list[str]:
    """The names in ``conf/dataset`` whose ``sample_types`` include ``sample_type``."""
    names = []
    for path in sorted((CONF / "dataset").glob("*.yaml")):
        offered = (yaml.safe_load(path.read_text()) or {}).get("sample_types", ["conversation", "prompt"])
        names += [path.stem] if sample_type in offered else []
    return names
