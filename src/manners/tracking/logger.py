"""One MLflow run: its params, metrics, data and artifacts."""

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from manners.errors import MannersError, Pruned
from manners.runtime.run_dir import RunArtifact, RunDir
from manners.runtime.signals import ShutdownRequested
from manners.tracking import store
from manners.tracking.async_writer import AsyncMLflowWriter

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # an Outbox tries again by itself
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
LONGEST_NOTE = 7900  # characters of a tag that every store takes
PACKAGES = ("torch", "transformers", "peft", "lightning", "mlflow", "hydra-core", "datasets", "bitsandbytes")


class NullLogger:
    """What the other processes of a distributed run are handed: nothing they say is kept, one speaks for all."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...

    def artifact(self, path: Path, folder: str | None = None) -> None: ...

    def table(self, records: list[dict[str, Any]], name: str) -> None: ...

    def tag(self, **tags: str) -> None: ...

    def describe(self, markdown: str) -> None: ...


class MLflowLogger:
    """One MLflow run. Everything returns at once: an Outbox sends it. A step that the store has already is left out."""

    def __init__(self, client: Any, run_id: str, folder: Path, known: dict[str, set[int]]):
        self.client, self.run_id, self.folder = client, run_id, folder
        self.outbox = AsyncMLflowWriter(client, run_id, folder, known)
        self.watch: Callable[[dict[str, float], int], None] = lambda metrics, step: None

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Metrics of an optimizer step. ``watch`` looks at them, too: a search may give the job up."""
        self.outbox.metrics(metrics, step)
        self.watch(metrics, step)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file or folder of the run's own."""
        self.outbox.put({"artifact": str(path.relative_to(self.folder)), "folder": folder})

    def table(self, records: list[dict[str, Any]], name: str) -> None:
        if records:
            self.outbox.put({"table": name, "columns": {key: [r[key] for r in records] for key in records[0]}})

    def tag(self, **tags: str) -> None:
        for key, value in tags.items():
            self.outbox.put({"tag": f"manners.{key}" if not key.startswith("mlflow") else key, "value": value})

    def describe(self, markdown: str) -> None:
        """What the MLflow UI shows at the top of the run, under its name: less a heading, in whole lines."""
        body = markdown.partition("\n")[2].strip() if markdown.startswith("# ") else markdown
        whole = body if len(body) <= LONGEST_NOTE else body[:LONGEST_NOTE].rpartition("\n")[0]
        self.outbox.put({"tag": "mlflow.note.content", "value": whole})

    def close(self, status: str) -> None:
        """The run has ended. Says what to type where the store has not heard all of it."""
        with suppress(OSError):  # a full disk takes no note of it, and the store may
            self.outbox.put({"end": status})
        if not self.outbox.close():
            print(
                f"the tracking server does not answer: what it lacks of this run is in {self.folder}. Once it is back: "
                f"python -m manners.tracking.sync {shlex.quote(str(self.folder))}",
                file=sys.stderr,
            )


@contextmanager
def open_run(
    cfg: DictConfig, folder: RunDir, rows: int, digest: str, inputs: dict[str, RunArtifact], overrides: list[str]
) -> Iterator[MLflowLogger]:
    """Start the MLflow run, or go on with the one that ``folder`` remembers; it ends as finished or failed.

    It is linked by tags, both ways, with the runs of its ``inputs``. ``overrides`` are those of its own command.
    """
    store.check_reachable(cfg.tracking.uri)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    uri = store.absolute_uri(cfg.tracking.uri)
    mlflow.set_tracking_uri(uri)
    with report_refusals(cfg.tracking.uri):
        client, experiment = store.open_experiment(cfg)
        run_id = folder.state.get("mlflow_run_id")
        known = store.logged_steps(client, run_id) if run_id else {}
        run = mlflow.start_run(
            run_id=run_id,
            experiment_id=experiment,
            run_name=folder.path.name,
            log_system_metrics=bool(cfg.tracking.system_metrics),
        )
    tracker = MLflowLogger(client, run.info.run_id, folder.path, known)
    status = "FAILED"
    try:
        folder.update_state(mlflow_run_id=run.info.run_id)
        if not folder.state.get("described"):  # a kill may have come before; to say it twice does no harm
            with report_refusals(cfg.tracking.uri):
                describe_run(mlflow, client, run.info.run_id, cfg, folder, rows, digest, overrides)
            link_runs(tracker, folder, inputs)
            folder.update_state(described=True)
        if cfg.sweep.parent:
            tracker.tag(**{"mlflow.parentRunId": cfg.sweep.parent})
        yield tracker
        status = "FINISHED"
    except (KeyboardInterrupt, ShutdownRequested):
        status = "KILLED"
        raise
    except Pruned as why:
        status = "KILLED"
        tracker.tag(pruned=str(why))
        folder.update_state(status="pruned", summary=str(why))
        raise
    except Exception as error:
        with suppress(OSError):  # it may be the disk that is full
            tracker.tag(error=f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        tracker.close(status)
        end_active_run(mlflow, status)


@contextmanager
def report_refusals(uri: str) -> Iterator[None]:
    """Before training begins, what the store does not take ends the command."""
    try:
        yield
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MannersError(
            f"tracking.uri={uri} refuses: {reason}. Without a server: tracking.uri=sqlite:///outputs/mlflow.db"
        ) from error


def end_active_run(mlflow: Any, status: str) -> None:
    """Take the run off mlflow's own list. The store has heard of the end already, or is away: no time is spent."""
    hasty = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
    before = {name: os.environ[name] for name in hasty}
    os.environ.update(hasty)
    with suppress(Exception):
        mlflow.end_run(status)
    os.environ.update(before)


def describe_run(
    mlflow: Any,
    client: Any,
    run_id: str,
    cfg: DictConfig,
    folder: RunDir,
    rows: int,
    digest: str,
    overrides: list[str],
) -> None:
    """Config, overrides, code, versions and data of a new run."""
    (folder.path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    client.log_artifact(run_id, str(folder.path / "config.yaml"))
    mlflow.log_params(flatten_params(OmegaConf.to_container(cfg, resolve=True)))
    commit, diff = git_state()
    (folder.path / "code.diff").write_text(diff)
    client.log_artifact(run_id, str(folder.path / "code.diff"))
    versions = {p: version(p) for p in PACKAGES} | {"python": sys.version.split()[0]}
    tags = {"manners.versions": ", ".join(f"{name} {number}" for name, number in versions.items())}
    tags |= {"manners.git_commit": commit, "manners.git_dirty": str(bool(diff)), "manners.data_digest": digest}
    tags |= {"manners.fingerprint": folder.state["fingerprint"], "manners.stage_mark": folder.state["stage_mark"]}
    tags |= {"manners.method": cfg.method.name, "manners.overrides": shlex.join(overrides)}
    mlflow.set_tags(tags | {"manners.folder": str(folder.path.resolve())})
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    source = CodeDatasetSource({"dataset.path": str(cfg.dataset.path), "rows": str(rows)})
    data = MetaDataset(source, name=Path(cfg.dataset.path).name, digest=digest)  # type: ignore[abstract]
    log_data(mlflow, data)


def log_data(mlflow: Any, data: Any) -> None:
    """MLflow looks for the data's row, then writes one: of two runs that start at once, one is refused.

    By then the other's row is there, and the second time it is found.
    """
    try:
        mlflow.log_input(data, context="training")
    except mlflow.MlflowException:
        mlflow.log_input(data, context="training")


def link_runs(tracker: MLflowLogger, folder: RunDir, inputs: dict[str, RunArtifact]) -> None:
    """Tags on this run name those it came from; a tag on each of them names this one."""
    for role, found in inputs.items():
        tracker.tag(**{role: found.run, f"{role}_run_id": found.run_id})
        if found.run_id:
            used_by = f"manners.used_by.{folder.path.name}"
            tracker.outbox.put({"tag": used_by, "value": tracker.run_id, "run_id": found.run_id})


def flatten_params(node: Any, path: str = "") -> dict[str, str]:
    if not isinstance(node, dict):
        return {path: str(node)}
    found: dict[str, str] = {}
    for key, value in node.items():
        found |= flatten_params(value, f"{path}.{key}" if path else str(key))
    return found


def git_state() -> tuple[str, str]:
    """The commit and the diff against it; empty where the code is no checkout."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    return git("rev-parse", "HEAD").strip(), git("diff", "HEAD")
