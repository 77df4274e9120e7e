"""Data files for the tests of the readers."""

import json

from omegaconf import OmegaConf

from manners.config import Dataset
from manners.data import readers


def config(path, **options):
    return OmegaConf.structured(Dataset(path=str(path), **options))


def read(path, **options):
    """All rows in train, unless the rows or ``options`` say otherwise."""
    return readers.read(config(path, **{"validation_share": 0.0, "test_share": 0.0} | options))


def write(folder, *rows, name="data.jsonl"):
    """A file of ``rows``: each a JSON value, or a line as it stands."""
    path = folder / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = [user("2 + 2?"), assistant("4.")]

# format → pairs of a row and the conversation in it; the first row is one that `auto` can tell
