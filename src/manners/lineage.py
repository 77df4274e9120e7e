"""Which run a command means, and which earlier run its inputs come from.

A *fingerprint* is a hash of all that shapes a run: it names the folder, so that the same command goes on with it. The
narrower *stage mark* hashes what shapes the weights alone: PPO looks for its SFT and reward runs by it.
"""

import fcntl
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from manners import disk
from manners.errors import MannersError
from manners.paths import there

WEIGHTS = ("model", "dataset", "method", "adapter", "hardware", "seed")
SHAPES = (*WEIGHTS, "evaluation", "study_name", "run_name")
MODEL = "model"  # the folder of a finished run that holds its model
CONFIG = "manners.yaml"  # in it: the config that made it
TOLD = ("method.name", "model.name", "model.chat_template", "adapter.kind", "adapter.quantization")  # by any such


def fingerprint(cfg: DictConfig, data_digest: str, inputs: dict[str, str] | None = None) -> str:
    """Twelve hex digits over the resolved config, less what does not change the result, its data and its inputs."""
    return hashed(cfg, SHAPES, {"data": data_digest, "inputs": inputs or {}})


def stage_mark(cfg: DictConfig, data_digest: str, inputs: dict[str, str] | None = None) -> str:
    """The same over what shapes the weights: two runs that differ in name or evaluation only can stand for another."""
    return hashed(cfg, WEIGHTS, {"data": data_digest, "inputs": inputs or {}})


def hashed(cfg: DictConfig, keys: tuple[str, ...], more: dict[str, Any]) -> str:
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    shaping = {key: resolved[key] for key in keys} | more
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class Folder:
    """A run's folder and the little that must survive a kill; ``state`` is written as a whole or not at all."""

    path: Path
    state: dict[str, Any]
    again: bool = False  # a run with this fingerprint has a folder already, finished or at work

    def remember(self, **what: Any) -> None:
        self.state |= what
        with disk.whole(self.path / "run.json") as file:
            file.write(json.dumps(self.state, indent=1).encode())


@dataclass(frozen=True)
class Input:
    """An earlier run's result: where its model lies, and which run made it."""

    model: Path
    mark: str  # of the run, or of the folder's bytes where nobody knows the run
    run: str  # its name
    run_id: str = ""  # MLflow's

    @property
    def config(self) -> DictConfig | None:
        """What made it; None for a folder that is not ours. Raises MannersError where it is damaged."""
        file = self.model / CONFIG
        if not file.exists():
            return None
        try:
            found = OmegaConf.load(file)
            wrong = [key for key in TOLD if not isinstance(OmegaConf.select(found, key), str)]
        except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, RecursionError) as error:
            raise MannersError(f"{file} is damaged: {str(error).splitlines()[0]}.") from None
        if wrong or not isinstance(found, DictConfig) or "revision" not in found.model:
            raise MannersError(f"{file} is damaged: it does not say {wrong[0] if wrong else 'model.revision'}.")
        return found


def finished(output_dir: str, mark: str) -> Input | None:
    """The finished run with this stage mark, if there is one in ``output_dir``."""
    for path in sorted((Path(output_dir) / "runs").glob("*/run.json")):
        state = load_state(path.parent)
        if state.get("status") == "finished" and state.get("stage_mark") == mark and (path.parent / MODEL).exists():
            return Input(path.parent / MODEL, mark, path.parent.name, state.get("mlflow_run_id", ""))
    return None


def ended(output_dir: str, mark: str) -> tuple[Path, dict[str, Any]] | None:
    """The run with this fingerprint that finished, or that a search gave up: its folder, and what it remembers."""
    for path in sorted((Path(output_dir) / "runs").glob(f"*-{mark[:8]}*/run.json")):
        state = load_state(path.parent)
        if state.get("fingerprint") == mark and state.get("status") in ("finished", "pruned"):
            return path.parent, state
    return None


def given(name: str, output_dir: str) -> Input | None:
    """The run that a folder, a run's name or an MLflow run id in ``output_dir`` names, or None."""
    for place in (name, f"{output_dir}/runs/{name}"):
        if (path := there(place)) is None:
            continue
        path = path.resolve()
        model = path / MODEL if (path / MODEL).is_dir() else path
        if (model / "config.json").exists() or (model / "adapter_config.json").exists():
            state = load_state(model.parent)
            if not state:  # nobody's run: it goes by its own name
                return Input(model, folder_mark(model), path.name)
            return Input(model, state.get("stage_mark", ""), model.parent.name, state.get("mlflow_run_id", ""))
    for path in sorted((Path(output_dir) / "runs").glob("*/run.json")):
        state = load_state(path.parent)
        if state.get("mlflow_run_id") == name and (path.parent / MODEL).exists():
            return Input(path.parent / MODEL, state.get("stage_mark", ""), path.parent.name, name)
    return None


def folder_mark(model: Path) -> str:
    sha = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        sha.update(file.read_bytes())
    return sha.hexdigest()[:12]


@contextmanager
def turn(output_dir: str, mark: str, wait: Callable[[], None]) -> Iterator[None]:
    """One job at a time trains the stage ``mark``; the others ``wait`` (told once), and then find it finished."""
    path = Path(output_dir) / "locks" / mark
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        if not locked(lock):
            wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def claim(cfg: DictConfig, digest: str, inputs: dict[str, str] | None = None) -> Iterator[Folder]:
    """The folder of the unfinished run with this fingerprint, or a new one. Held by a lock that dies with us.

    So the same command goes on after a kill, starts anew after an end, and two at once get a folder each.
    """
    name = re.sub(r"[^\w.-]+", "-", cfg.run_name or f"{cfg.study_name}-{cfg.method.name}-{Path(cfg.model.name).name}")
    mark = fingerprint(cfg, digest, inputs)
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
                    folder.remember(fingerprint=mark, stage_mark=stage_mark(cfg, digest, inputs), status="running")
                    yield folder
                    return
        attempt += 1


def load_state(path: Path) -> dict[str, Any]:
    """What a run remembers; nothing where it is no run. Raises MannersError where that is damaged."""
    file = path / "run.json"
    try:
        state = json.loads(file.read_text()) if file.exists() else {}
        texts = [state.get(name, "") for name in ("status", "fingerprint", "stage_mark", "mlflow_run_id")]
    except (ValueError, RecursionError, AttributeError, OSError):
        texts = [None]
    if not all(isinstance(text, str) for text in texts):
        raise MannersError(f"{file} is damaged. Without the folder {path} its command trains that run anew.")
    return dict(state)


def locked(lock: Any) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
