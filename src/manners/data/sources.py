"""Where data lies: the package, a local file or folder, or the hub. Reads no rows."""

import json
from importlib.resources import files
from pathlib import Path

import yaml

from manners.data import csv_files
from manners.errors import MannersError, did_you_mean
from manners.runtime.paths import CONF, existing_path

CORPORA = Path(str(files("manners.data") / "corpora"))
FORMATS = (".jsonl", ".json", ".txt", ".csv")


def local_path(path: str, key: str = "dataset.path") -> Path | None:
    """The file or folder that ``path`` names, or None for a hub name such as 'org/name'.

    Raises MannersError, with the option's ``key``, where a local path is meant and nothing is there.
    """
    if path.startswith("package:"):
        found = CORPORA / path.removeprefix("package:")
        if not found.exists():
            names = [p.name for p in CORPORA.iterdir() if p.is_dir()]
            raise MannersError(f"{key}={path}: no such corpus in the package. {did_you_mean(found.name, names)}")
        return found
    if local := existing_path(path):
        return local
    if path.startswith(("/", ".", "~")) or path.endswith(FORMATS) or path.count("/") != 1:
        here = Path(path)
        beside = existing_path(str(here.parent))
        names = [p.name for p in beside.glob("*")] if beside else []
        near = did_you_mean(here.name, names) if names else f"There is nothing in {here.parent}."
        raise MannersError(f"{key}={path}: there is no such file or folder. {near}")
    return None


def is_parquet_folder(path: Path) -> bool:
    """Whether a folder is a hub dataset as ``hf download`` leaves it, in Parquet."""
    return path.is_dir() and any(path.rglob("*.parquet"))


def data_files(path: Path) -> list[Path]:
    """The data files of a folder, sorted, or the one file."""
    if path.is_file():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix in FORMATS)
    if not found:
        raise MannersError(f"dataset.path={path}: the folder has no file that ends in {', '.join(FORMATS)}.")
    return found


def count_rows(path: Path) -> int:
    """The rows of a file, none of them read: its lines with something in them, or the entries of a .json list."""
    if path.suffix == ".csv":
        return csv_files.count_csv_rows(path)
    if path.suffix == ".json":
        try:
            rows = json.loads(path.read_text("utf-8-sig"))
        except (ValueError, RecursionError):  # the reader says what is wrong with it
            return 0
        return len(rows) if isinstance(rows, list) else 0
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def datasets_offering(view: str) -> list[str]:
    """The names in ``conf/dataset`` whose data offers ``view``."""
    found = []
    for path in sorted((CONF / "dataset").glob("*.yaml")):
        views = (yaml.safe_load(path.read_text()) or {}).get("sample_types", ["conversation", "prompt"])
        found += [path.stem] if view in views else []
    return found
