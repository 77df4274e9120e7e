"""One MLflow run: its params, metrics, data, tables and artifacts."""

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from manners.data.loading import Splits
from manners.errors import MannersError, Pruned
from manners.redact import redact_secrets
from manners.runtime.run_dir import RunArtifact, RunDir
from manners.runtime.signals import ShutdownRequested
from manners.tracking import store
from manners.tracking.async_writer import AsyncMLflowWriter
from manners.tracking.mirrors import Mirrors
from manners.tracking.pruning import MetricsCallback

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # AsyncMLflowWriter retries by itself
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
MAX_NOTE_CHARS = 7900  # of a tag that every store takes
IGNORED = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")  # environment variables of MLflow's
PACKAGES = ("torch", "transformers", "peft", "lightning", "mlflow", "hydra-core", "datasets", "bitsandbytes")


class NullLogger:
    """Logs nothing, with the methods of ``MLflowLogger``: one process of a distributed run logs for all."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...

    def artifact(self, path: Path, folder: str | None = None) -> None: ...

    def table(self, records: list[dict[str, Any]], name: str) -> None: ...

    def tag(self, **tags: str) -> None: ...

    def describe(self, markdown: str) -> None: ...


class MLflowLogger:
    """Logs to one MLflow run. Every call returns at once; steps that the store has already are left out."""

    def __init__(
        self,
        client: Any,
        run_id: str,
        folder: Path,
        known: dict[str, set[int]],
        on_metrics: MetricsCallback | None = None,
        mirrors: Mirrors | None = None,
    ):
        self.mirrors = mirrors
        self.client, self.run_id, self.folder, self.on_metrics = client, run_id, folder, on_metrics
        self.writer = AsyncMLflowWriter(client, run_id, folder, known)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics of an optimizer step or iteration. ``on_metrics`` may raise Pruned."""
        new = self.writer.put_metrics(metrics, step)
        if self.mirrors and new:
            self.mirrors.log(new, step)
        if self.on_metrics:
            self.on_metrics(metrics, step)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file or folder of the run directory, under ``folder`` of the artifacts."""
        self.writer.put({"artifact": str(path.relative_to(self.folder)), "folder": folder})

    def table(self, records: list[dict[str, Any]], name: str) -> None:
        """Log records with the same keys as a table."""
        if records:
            self.writer.put({"table": name, "columns": {key: [r[key] for r in records] for key in records[0]}})

    def tag(self, **tags: str) -> None:
        """Set tags; those that are not MLflow's own get the prefix ``manners.``."""
        for key, value in tags.items():
            tag = key if key.startswith("mlflow") else f"manners.{key}"
            self.writer.put({"tag": tag, "value": redact_secrets(value)})

    def describe(self, markdown: str) -> None:
        """Set the description at the top of the run page: without the heading, in whole lines."""
        body = markdown.partition("\n")[2].strip() if markdown.startswith("# ") else markdown
        note = body if len(body) <= MAX_NOTE_CHARS else body[:MAX_NOTE_CHARS].rpartition("\n")[0]
        self.writer.put({"tag": "mlflow.note.content", "value": note})

    def close(self, status: str) -> None:
        """End the run. Says what to type where the store has not received everything."""
        if self.mirrors:
            self.mirrors.close(status)
        with suppress(OSError):  # a full disk takes no record of it, and the store may
            self.writer.put({"end": status})
        if not self.writer.close():
            print(
                f"the tracking server does not answer: what it lacks of this run is in {self.folder}. Once it is back: "
                f"python -m manners.tracking.sync {shlex.quote(str(self.folder))}",
                file=sys.stderr,
            )


@contextmanager
def open_run(
    cfg: DictConfig,
    directory: RunDir,
    splits: Splits,
    data_digest: str,
    dependencies: dict[str, RunArtifact],
    overrides: list[str],
    on_metrics: MetricsCallback | None = None,
) -> Iterator[MLflowLogger]:
    """Start the MLflow run, or continue the one of ``directory``; it ends as finished, failed or killed.

    Tags link it, both ways, with the runs that it starts from. ``overrides`` are those of its own command. Raises
    MannersError where the store refuses the run.
    """
    store.check_reachable(cfg.tracking.uri)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # logs the traceback of what it raises
    if ignored := [name for name in IGNORED if os.environ.get(name)]:
        print(f"{', '.join(ignored)} in the environment: ignored. The experiment is tracking.experiment=NAME.")
    tracking_uri = mlflow.get_tracking_uri()
    set_tracking_uri(store.absolute_uri(cfg.tracking.uri))
    with report_refusals(cfg.tracking.uri):
        client, experiment = store.open_experiment(cfg)
        run_id = find_or_create_run(client, experiment, directory)
        known = store.logged_steps(client, run_id)
        activate_run(run_id, system_metrics=bool(cfg.tracking.system_metrics))
    mirrors = Mirrors(cfg, directory.path) if len(cfg.report_to) > 1 else None
    logger = MLflowLogger(client, run_id, directory.path, known, on_metrics, mirrors)
    status = "FAILED"
    try:
        if not directory.state.described:  # a kill may have come before; to log it twice does no harm
            with report_refusals(cfg.tracking.uri):
                describe_run(client, run_id, cfg, directory, splits, data_digest, overrides)
            link_runs(logger, directory, dependencies)
            directory.update_state(described=True)
        if cfg.sweep.parent:
            logger.tag(**{"mlflow.parentRunId": cfg.sweep.parent})
        yield logger
        status = "FINISHED"
    except (KeyboardInterrupt, ShutdownRequested):
        status = "KILLED"
        raise
    except Pruned as why:
        status = "KILLED"
        logger.tag(pruned=str(why))
        directory.update_state(status="pruned", summary=str(why))
        raise
    except Exception as error:
        with suppress(OSError):  # it may be the disk that is full
            logger.tag(error=f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        logger.close(status)
        end_active_run(status)
        if mlflow.active_run():  # a notebook's own
            set_tracking_uri(tracking_uri)


def set_tracking_uri(uri: str) -> None:
    """Set the store of MLflow's fluent functions; not that of later runs of this process, as its variable would."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


def find_or_create_run(client: Any, experiment: str, directory: RunDir) -> str:
    """The id of the MLflow run of a directory; of a new one where there is none, or where the store has lost it."""
    from mlflow.tracking.context.registry import resolve_tags  # user and source, as mlflow.start_run sets them

    run_id = directory.state.mlflow_run_id
    if run_id and store.has_run(client, run_id):
        return run_id
    if run_id:
        print("the tracking store no longer has this run: a new MLflow run gets all its metrics from the run directory")
    run_id = client.create_run(experiment, run_name=directory.path.name, tags=resolve_tags()).info.run_id
    directory.update_state(mlflow_run_id=run_id, described=False)
    return str(run_id)


@contextmanager
def report_refusals(uri: str) -> Iterator[None]:
    """Before training begins, an error of the store ends the command. Raises MannersError."""
    try:
        yield
    except MannersError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MannersError(
            f"tracking.uri={uri} refuses: {reason}. Without a server: tracking.uri=sqlite:///outputs/mlflow.db"
        ) from error


def activate_run(run_id: str, system_metrics: bool) -> None:
    """Make a run the active one, whatever experiment or run of its own a notebook has active."""
    import mlflow
    from mlflow.tracking import fluent

    before = fluent._active_experiment_id
    fluent._active_experiment_id = None  # else MLflow refuses a run of another experiment
    try:
        mlflow.start_run(run_id, nested=True, log_system_metrics=system_metrics)
    finally:
        fluent._active_experiment_id = before


def end_active_run(status: str) -> None:
    """Take the run off mlflow's stack of active runs. The store knows of the end already, or is away: do not wait."""
    import mlflow

    impatient = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
    before = {name: os.environ[name] for name in impatient}
    os.environ.update(impatient)
    with suppress(Exception):
        mlflow.end_run(status)
    os.environ.update(before)


def describe_run(
    client: Any,
    run_id: str,
    cfg: DictConfig,
    directory: RunDir,
    splits: Splits,
    data_digest: str,
    overrides: list[str],
) -> None:
    """Log config, overrides, code, versions and data of a new run."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    (directory.path / "config.yaml").write_text(redact_secrets(OmegaConf.to_yaml(cfg, resolve=True)))
    client.log_artifact(run_id, str(directory.path / "config.yaml"))
    mlflow.log_params(flatten_params(OmegaConf.to_container(cfg, resolve=True)))
    commit, diff = git_state()
    (directory.path / "code.diff").write_text(diff)
    client.log_artifact(run_id, str(directory.path / "code.diff"))
    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # bitsandbytes is not for all systems
            versions[package] = version(package)
    mlflow.set_tags(
        {
            "manners.versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
            "manners.git_commit": commit,
            "manners.git_dirty": str(bool(diff)),
            "manners.data_digest": data_digest,
            "manners.fingerprint": directory.state.fingerprint,
            "manners.weights_fingerprint": directory.state.weights_fingerprint,
            "manners.method": cfg.method.name,
            "manners.overrides": redact_secrets(shlex.join(overrides)),
            "manners.folder": str(directory.path.resolve()),
        }
    )
    source = CodeDatasetSource({"dataset.path": str(cfg.dataset.path), "rows": str(len(splits.train))})
    data = MetaDataset(source, name=Path(cfg.dataset.path).name, digest=data_digest)  # type: ignore[abstract]
    try:
        mlflow.log_input(data, context="training")
    except mlflow.MlflowException:  # of two runs that log new data at once, one is refused; then the row exists
        mlflow.log_input(data, context="training")


def link_runs(logger: MLflowLogger, directory: RunDir, dependencies: dict[str, RunArtifact]) -> None:
    """Tags on this run name those that it starts from; a tag on each of them names this one."""
    for role, artifact in dependencies.items():
        logger.tag(**{role: artifact.name, f"{role}_run_id": artifact.run_id})
        if artifact.run_id:
            tag = f"manners.used_by.{directory.path.name}"
            logger.writer.put({"tag": tag, "value": logger.run_id, "run_id": artifact.run_id})


def flatten_params(node: Any, path: str = "") -> dict[str, str]:
    """Nested config values by dotted key."""
    if not isinstance(node, dict):
        return {path: redact_secrets(str(node))}
    params: dict[str, str] = {}
    for key, value in node.items():
        params |= flatten_params(value, f"{path}.{key}" if path else str(key))
    return params


def git_state() -> tuple[str, str]:
    """The commit and the diff against it; empty where the code is no checkout, or git is not installed."""

    def git(*args: str) -> str:
        try:
            done = subprocess.run(
                ["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
            )
        except OSError:  # a container may have no git
            return ""
        return done.stdout if done.returncode == 0 else ""

    return git("rev-parse", "HEAD").strip(), git("diff", "HEAD")
