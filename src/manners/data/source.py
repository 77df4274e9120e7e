"""Where data lies: the package, a local file or folder, or the hub. Reads no rows."""

from importlib.resources import files
from pathlib import Path

import yaml

from manners.errors import MannersError, did_you_mean

CORPORA = Path(str(files("manners.data") / "corpora"))
CONF = Path(__file__).resolve().parents[3] / "conf" / "dataset"
FORMATS = (".jsonl", ".json", ".txt")


def local_path(path: str) -> Path | None:
    """The file or folder that ``path`` names, or None for a hub name such as 'org/name'.

    Raises MannersError where a local path is meant and nothing is there.
    """
    if path.startswith("package:"):
        found = CORPORA / path.removeprefix("package:")
        if not found.exists():
            names = [p.name for p in CORPORA.iterdir() if p.is_dir()]
            raise MannersError(f"dataset.path={path}: no such corpus in the package. {did_you_mean(found.name, names)}")
        return found
    if Path(path).exists():
        return Path(path)
    if path.startswith(("/", ".", "~")) or path.endswith(FORMATS) or path.count("/") != 1:
        near = did_you_mean(Path(path).name, [p.name for p in Path(path).parent.glob("*")] or ["(the folder is empty)"])
        raise MannersError(f"dataset.path={path}: there is no such file or folder. {near}")
    return None


def files_of(path: Path) -> list[Path]:
    """The data files of a folder, sorted, or the one file."""
    if path.is_file():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix in FORMATS)
    if not found:
        raise MannersError(f"dataset.path={path}: the folder has no file that ends in {', '.join(FORMATS)}.")
    return found


def count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def datasets_with(view: str) -> list[str]:
    """The names in ``conf/dataset`` whose data offers ``view``."""
    found = []
    for path in sorted(CONF.glob("*.yaml")):
        views = (yaml.safe_load(path.read_text()) or {}).get("views", ["chat", "prompt"])
        found += [path.stem] if view in views else []
    return found
