"""The directory of a run: which command it belongs to, what it has done so far, and the locks around it.

Two hashes say which runs are the same. The *run fingerprint* is over all that shapes a run: it names the directory, so
that the same command resumes it. The narrower *weights fingerprint* is over what shapes the weights alone: PPO looks
for its SFT and reward runs by it. Both are over the config and the content of what it only names: data, base model,
reward functions, versions (``contents_of`` in ``manners.pipeline.dependencies``).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from manners.errors import MannersError
from manners.runtime.atomic_io import atomic_write
from manners.runtime.model_files import folder_digest
from manners.runtime.paths import existing_path

WEIGHTS_KEYS = ("model", "dataset", "method", "adapter", "hardware", "seed")
RUN_KEYS = (*WEIGHTS_KEYS, "evaluation", "experiment_name", "run_name")
NOT_HASHED = {  # how the same batch is computed, what is logged, and how often a checkpoint is saved
    "hardware": {"microbatch_size"},
    "method": {"microbatch_tokens", "save_steps", "logging_steps", "log_samples", "log_samples_steps"},
}
# Options that came later are hashed only where they are set: runs from before keep their fingerprint.
ADDED: dict[str, dict[str, Any]] = {
    "adapter": {"use_rslora": False, "use_dora": False, "init_lora_weights": True},
    "method": {"neftune_noise_alpha": None, "corruption_kinds": None},
    "dataset": {"mix": None},
}
REPORT_KEYS = {"dataset": {"style_judge", "judge_labels", "prompted_baseline", "text_stats"}}  # shape no weights
MODEL_DIR = "model"  # of a finished run
# One of them says what a model directory holds: whole weights, an adapter, or a head on a frozen base.
MODEL_CONFIGS = ("config.json", "adapter_config.json", "score_head_config.json")
CONFIG_FILE = "manners.yaml"  # in the model directory: the config that made it
STATE_FILE = "run.json"
REQUIRED_CONFIG = (
    *("method.name", "model.name", "model.chat_template", "model.attn_implementation"),
    *("adapter.kind", "adapter.quantization"),
)


def run_fingerprint(cfg: DictConfig, contents: dict[str, str], dependencies: dict[str, str] | None = None) -> str:
    """Twelve hex digits over the resolved config, less what does not change the result, contents and dependencies."""
    return hash_config(cfg, RUN_KEYS, {"contents": contents, "dependencies": dependencies or {}})


def weights_fingerprint(cfg: DictConfig, contents: dict[str, str], dependencies: dict[str, str] | None = None) -> str:
    """The same over what shapes the weights: runs that differ in name or evaluation only have the same weights."""
    more = {"contents": contents, "dependencies": dependencies or {}}
    return hash_config(cfg, WEIGHTS_KEYS, more, NOT_HASHED | REPORT_KEYS)


def hash_config(
    cfg: DictConfig, keys: tuple[str, ...], more: dict[str, Any], left_out: dict[str, set[str]] = NOT_HASHED
) -> str:
    """Twelve hex digits over ``keys`` of the resolved config, less the options ``left_out`` of groups, and ``more``."""
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    for group, names in left_out.items():
        resolved[group] = {k: v for k, v in resolved[group].items() if k not in names}
    for group, defaults in ADDED.items():
        resolved[group] = {k: v for k, v in resolved[group].items() if k not in defaults or v != defaults[k]}
    shaping = {key: resolved[key] for key in keys} | more
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RunState:
    """What of a run must survive a kill, in ``run.json``."""

    status: str = ""  # running, finished, or pruned by a search
    fingerprint: str = ""
    weights_fingerprint: str = ""
    data_digest: str = ""  # of its rows, so that a file that was changed later is not taken for them
    mlflow_run_id: str = ""
    command: str | None = None  # that made it, less `python train.py` and the tracking server
    described: bool = False  # whether MLflow has its config, code and data
    device: str | None = None  # and number format, such as "cpu bf16"; a resumed run counts on as it began
    microbatch_size: int | None = None  # rows; a resumed run counts on in the microbatches that it began with
    before: dict[str, Any] | None = None  # evaluation before training
    tokens: int | None = None  # read or sampled in training
    seconds: float = 0.0  # at work, less the present part of the run
    since: float | None = None  # when the present part began, in seconds since the epoch
    metric: float | None = None  # what a sweep optimizes
    best_step: int = 0
    model_digest: str = ""  # of the saved model, so that one that was changed later is not taken for it
    summary: str = ""
    dependencies: dict[str, str] = field(default_factory=dict)  # role → model directory or MLflow run id


@dataclass
class RunDir:
    """A run's directory and its state, which is written as a whole or not at all."""

    path: Path
    state: RunState = field(default_factory=RunState)
    is_rerun: bool = False  # a run with this fingerprint has a directory already, finished or at work

    def update_state(self, **changes: Any) -> None:
        """Change fields of the state and write it."""
        self.state = replace(self.state, **changes)
        with atomic_write(self.path / STATE_FILE) as file:
            file.write(json.dumps(asdict(self.state), indent=1).encode())


@dataclass(frozen=True)
class RunArtifact:
    """The model of an earlier run."""

    model_dir: Path
    fingerprint: str  # of its weights: the run's, or that of the files where the run is unknown
    name: str  # of the run
    run_id: str = ""  # MLflow's

    @property
    def config(self) -> DictConfig | None:
        """What made it; None for a folder that is not ours. Raises MannersError where the file is damaged."""
        file = self.model_dir / CONFIG_FILE
        if not file.exists():
            return None
        try:
            config = OmegaConf.load(file)
            wrong = [key for key in REQUIRED_CONFIG if not isinstance(OmegaConf.select(config, key), str)]
        except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, RecursionError) as error:
            raise MannersError(f"{file} is damaged: {str(error).splitlines()[0]}.") from None
        if wrong or not isinstance(config, DictConfig) or "revision" not in config.model:
            raise MannersError(f"{file} is damaged: it does not say {wrong[0] if wrong else 'model.revision'}.")
        if "loss_roles" not in config.dataset:
            raise MannersError(f"{file} was written by an older version of Manners: train that run again.")
        return config


def artifact_of(path: Path, state: RunState) -> RunArtifact:
    """The model of the run in a directory."""
    return RunArtifact(path / MODEL_DIR, state.weights_fingerprint, path.name, state.mlflow_run_id)


def check_unchanged(path: Path, state: RunState) -> None:
    """The model of a run is the one that it saved. Raises MannersError."""
    model_dir = path / MODEL_DIR
    now = saved_digest(model_dir)
    # Runs of earlier versions have the digest of the model's own files alone.
    if state.model_digest and model_dir.exists() and state.model_digest not in (now, now.partition("-")[0]):
        raise MannersError(
            f"{model_dir} was changed after its run had finished: it is not what was trained. Remove {path} and train "
            "again, or copy the model to a folder elsewhere and name that."
        )


def saved_digest(model_dir: Path) -> str:
    """Hex digits over the content of a saved model, and over that of the config that made it."""
    config = model_dir / CONFIG_FILE
    text = config.read_bytes() if config.exists() else b""
    return f"{folder_digest(model_dir)}-{hashlib.sha256(text).hexdigest()[:12]}"


def find_completed(output_dir: str, fingerprint: str) -> RunArtifact | None:
    """The finished run with this weights fingerprint, if there is one in ``output_dir``.

    Raises MannersError where its model was changed later.
    """
    for path, state in all_runs(output_dir):
        if state.status == "finished" and state.weights_fingerprint == fingerprint and (path / MODEL_DIR).exists():
            check_unchanged(path, state)
            return artifact_of(path, state)
    return None


def find_ended(output_dir: str, fingerprint: str) -> tuple[Path, RunState] | None:
    """The run with this run fingerprint that finished, or that a search pruned: its directory and state."""
    for path, state in all_runs(output_dir, f"*-{fingerprint[:8]}*"):
        if state.fingerprint == fingerprint and state.status in ("finished", "pruned"):
            return path, state
    return None


def find_by_name(name: str, output_dir: str) -> RunArtifact | None:
    """The finished run that a folder, a run's name or an MLflow run id in ``output_dir`` names, or None.

    Raises MannersError for a run that has not finished: what it saved may be half a model.
    """
    for place in (name, f"{output_dir}/runs/{name}"):
        if (path := existing_path(place)) is None:
            continue
        path = path.resolve()
        model_dir = path / MODEL_DIR if (path / MODEL_DIR).is_dir() else path
        if any((model_dir / name).exists() for name in MODEL_CONFIGS):
            state = load_state(model_dir.parent) if model_dir.name == MODEL_DIR else None
            if state is None:  # no run of ours: it has the name of its folder
                return RunArtifact(model_dir, folder_digest(model_dir), path.name)
            return finished_artifact(model_dir.parent, state)
        if state := load_state(path):  # it has saved no model yet
            return finished_artifact(path, state)
    for path, state in all_runs(output_dir):
        if state.mlflow_run_id == name and (path / MODEL_DIR).exists():
            return finished_artifact(path, state)
    return find_by_run_name(name, output_dir)


def find_by_run_name(name: str, output_dir: str) -> RunArtifact | None:
    """The finished run with this ``run_name``, to which a directory adds a hash. Raises MannersError for several."""
    directory_name = re.compile(rf"{re.escape(name)}-[0-9a-f]{{8}}(-\d+)?")
    finished = [(path, state) for path, state in all_runs(output_dir) if state.status == "finished"]
    named = [(path, state) for path, state in finished if directory_name.fullmatch(path.name)]
    if len(named) > 1:
        known = ", ".join(sorted(path.name for path, _ in named))
        raise MannersError(f"several runs are called {name}: name one of {known}.")
    return finished_artifact(*named[0]) if named else None


def finished_artifact(path: Path, state: RunState) -> RunArtifact:
    """The model of the run in a directory. Raises MannersError where the run has not finished, or was changed."""
    if state.status != "finished":
        raise MannersError(f"the run {path.name} has not finished: repeat its command, which resumes it.")
    check_unchanged(path, state)
    return artifact_of(path, state)


def all_runs(output_dir: str, pattern: str = "*") -> Iterator[tuple[Path, RunState]]:
    """Every run directory in ``output_dir`` with its state, by name."""
    for file in sorted((Path(output_dir) / "runs").glob(f"{pattern}/{STATE_FILE}")):
        state = load_state(file.parent)
        if state is not None:
            yield file.parent, state


def finished_names(output_dir: str) -> list[str]:
    """The names of the runs in ``output_dir`` that can be asked for."""
    return [path.name for path, state in all_runs(output_dir) if state.status == "finished"]


@contextmanager
def stage_lock(output_dir: str, fingerprint: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """One job at a time trains the stage ``fingerprint``; the others call ``on_wait`` once, and then find it done."""
    path = Path(output_dir) / "locks" / fingerprint
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        if not try_lock(lock):
            on_wait()
            lock.acquire()
        yield
    finally:
        lock.release()


@contextmanager
def acquire(cfg: DictConfig, contents: dict[str, str], dependencies: dict[str, str] | None = None) -> Iterator[RunDir]:
    """The directory of the unfinished run with this fingerprint, or a new one, held by a lock that dies with us.

    So the same command resumes after a kill, starts anew after an end, and two at once get a directory each. Raises
    MannersError where none can be written.
    """
    default = f"{cfg.experiment_name}-{cfg.method.name}-{Path(cfg.model.name).name}"
    name = re.sub(r"[^\w.-]+", "-", cfg.run_name or default)
    fingerprint = run_fingerprint(cfg, contents, dependencies)
    attempt = 1
    while True:
        suffix = "" if attempt == 1 else f"-{attempt}"
        path = Path(cfg.output_dir) / "runs" / f"{name}-{fingerprint[:8]}{suffix}"
        lock = FileLock(path / "lock")
        try:
            path.mkdir(parents=True, exist_ok=True)
            locked = try_lock(lock)
        except OSError as error:
            raise MannersError(
                f"{path} cannot be written ({error.strerror}). Choose another place: output_dir=FOLDER."
            ) from None
        try:
            if locked:
                state = load_state(path)  # only now: who held the lock may just have finished
                if state is None or (cfg.resume and state.status != "finished"):
                    run_dir = RunDir(path, state or RunState(), is_rerun=attempt > 1)
                    weights = weights_fingerprint(cfg, contents, dependencies)
                    run_dir.update_state(
                        fingerprint=fingerprint,
                        weights_fingerprint=weights,
                        data_digest=contents.get("data", ""),
                        status="running",
                    )
                    yield run_dir
                    return
        finally:
            lock.release()
        attempt += 1


def load_state(path: Path) -> RunState | None:
    """The state of the run in ``path``; None where it is no run. Raises MannersError where the file is damaged."""
    file = path / STATE_FILE
    if not file.exists():
        return None
    try:
        saved = json.loads(file.read_text())
        known = {f.name for f in fields(RunState)}
        state = RunState(**{name: value for name, value in saved.items() if name in known})
        texts = (state.status, state.fingerprint, state.weights_fingerprint, state.mlflow_run_id)
        sound = all(isinstance(text, str) for text in texts)
    except (ValueError, RecursionError, AttributeError, TypeError, OSError):
        sound = False
    if not sound:
        raise MannersError(f"{file} is damaged. Without the folder {path} its command trains that run again.")
    return state


def try_lock(lock: FileLock) -> bool:
    """Acquire a lock without waiting. Whether it was free."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True
