"""Which run a command means: a fingerprint of all that shapes its result, and the folder that carries it."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from manners.errors import MannersError

SHAPES = ("model", "dataset", "method", "adapter", "hardware", "evaluation", "study_name", "run_name", "seed")


def fingerprint(cfg: DictConfig, data_digest: str) -> str:
    """Twelve hex digits over the resolved config, less what does not change the result, and the data itself."""
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    shaping = {key: resolved[key] for key in SHAPES} | {"data": data_digest}
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class Folder:
    """A run's folder and the little that must survive a kill; ``state`` is written as a whole or not at all."""

    path: Path
    state: dict[str, Any]
    again: bool = False  # a run with this fingerprint has a folder already, finished or at work

    def remember(self, **what: Any) -> None:
        self.state |= what
        part = self.path / "run.json.part"
        part.write_text(json.dumps(self.state, indent=1))
        os.replace(part, self.path / "run.json")


@contextmanager
def claim(cfg: DictConfig, digest: str) -> Iterator[Folder]:
    """The folder of the unfinished run with this fingerprint, or a new one. Held by a lock that dies with us.

    So the same command goes on after a kill, starts anew after an end, and two at once get a folder each.
    """
    name = re.sub(r"[^\w.-]+", "-", cfg.run_name or f"{cfg.study_name}-{cfg.method.name}-{Path(cfg.model.name).name}")
    mark = fingerprint(cfg, digest)
    attempt = 1
    while True:
        suffix = "" if attempt == 1 else f"-{attempt}"
        path = Path(cfg.output_dir) / "runs" / f"{name}-{mark[:8]}{suffix}"
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / "lock").open("w")
        except OSError as error:
            raise MannersError(
                f"{path} cannot be written ({error.strerror}). Choose another place: output_dir=FOLDER."
            ) from None
        with lock:
            if locked(lock):
                state = load_state(path)  # only now: who held the lock may just have finished
                if not state or (cfg.resume and state.get("status") != "finished"):
                    folder = Folder(path, state, again=attempt > 1)
                    folder.remember(fingerprint=mark, status="running")
                    yield folder
                    return
        attempt += 1


def load_state(path: Path) -> dict[str, Any]:
    file = path / "run.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def locked(lock: Any) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
