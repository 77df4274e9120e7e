"""The MLflow store: whether it can be reached, its experiments, and what it has of earlier runs."""

import json
import logging
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from filelock import FileLock
from omegaconf import DictConfig

from manners.errors import MannersError, did_you_mean
from manners.redact import redact_secrets
from manners.runtime.model_files import folder_digest
from manners.runtime.paths import ROOT
from manners.runtime.run_dir import MODEL_DIR, RunArtifact, RunDir, RunState, check_unchanged, load_state
from manners.tracking.traces import AssessedReply, log_traces

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
SQLITE = "sqlite:///"
# A saved view of an experiment: by default MLflow 3 lists runs without any result.
VIEW = "results"
VIEW_COLUMNS = (
    *("metrics.`after/style_accuracy`", "metrics.`after/loss`", "params.`seed`"),
    *("tags.`manners.method`", "tags.`manners.summary`"),
)


def find_stage_run(cfg: DictConfig, fingerprint: str) -> RunArtifact | None:
    """The newest finished run with this weights fingerprint; its model is downloaded into ``output_dir``."""
    client = existing_store(cfg.tracking.uri)
    if client is None:
        return None
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = f"tags.`manners.weights_fingerprint` = '{fingerprint}' and attributes.status = 'FINISHED'"
    runs = client.search_runs(experiments, query, max_results=1)
    return download_run(client, runs[0], cfg.output_dir) if runs else None


def fetch_run(cfg: DictConfig, run_id: str) -> RunArtifact | None:
    """The run with this MLflow id, or behind this name in the registry (``models:/…``), or None."""
    if run_id.startswith("models:/"):
        return registered_run(cfg, run_id)
    client = existing_store(cfg.tracking.uri) if re.fullmatch("[0-9a-f]{32}", run_id) else None
    if client is None:
        return None
    from mlflow.exceptions import MlflowException

    try:
        return download_run(client, client.get_run(run_id), cfg.output_dir)
    except MlflowException:
        return None


def registered_run(cfg: DictConfig, name: str) -> RunArtifact:
    """The run behind ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``. Raises MannersError where there is none."""
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", name)
    if match is None:
        raise MannersError(f"{name}: the registry knows models:/NAME@ALIAS and models:/NAME/VERSION.")
    uri = cfg.tracking.uri
    client = existing_store(uri)
    models = client.search_registered_models() if client else []
    if not models:
        raise MannersError(f"{name}: nothing is registered in {uri}. First: python train.py register_model=true")
    from mlflow.exceptions import MlflowException

    model, alias, number = match.groups()
    try:
        version = client.get_model_version_by_alias(model, alias) if alias else client.get_model_version(model, number)
        run = client.get_run(version.run_id or "none")  # a model of somebody else may come from no run
    except MlflowException:
        known = [f"models:/{m.name}@{alias}" for m in models for alias in m.aliases]
        known += [f"models:/{m.name}/{v.version}" for m in models for v in m.latest_versions]
        hint = did_you_mean(name, known)
        raise MannersError(f"{name} is not the model of a run in the registry of {uri}. {hint}") from None
    artifact = download_run(client, run, cfg.output_dir)
    if artifact is None:
        raise MannersError(f"{name} belongs to the run {run.info.run_name}, whose model the store does not have.")
    return artifact


def download_run(client: Any, run: Any, output_dir: str) -> RunArtifact | None:
    """The model of a run, downloaded where its directory is not on this machine; None where the store has none.

    Raises MannersError for a run that has not finished: what it saved may be half a model.
    """
    tags, run_id = run.data.tags, run.info.run_id
    fingerprint, name = tags.get("manners.weights_fingerprint", run_id[:12]), tags.get("mlflow.runName", run_id)
    if run.info.status != "FINISHED":
        raise MannersError(f"the run {name} has not finished: repeat its command, which resumes it.")
    local = Path(tags.get("manners.folder", ""))
    state = load_state(local) if "manners.folder" in tags else None
    if state and state.status == "finished" and state.mlflow_run_id == run_id and (local / MODEL_DIR).is_dir():
        check_unchanged(local, state)
        return RunArtifact(local / MODEL_DIR, fingerprint, name, run_id)
    if not any(f.path == MODEL_DIR for f in client.list_artifacts(run_id)):
        return None
    folder = Path(output_dir) / "fetched" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    state = RunState(
        status="running",  # until the model is whole
        weights_fingerprint=fingerprint,
        mlflow_run_id=run_id,
        summary=tags.get("manners.summary", ""),
        command=tags.get("manners.overrides"),
        dependencies={r: tags[key] for r in ("policy", "reward") if (key := f"manners.{r}_run_id") in tags},
    )
    directory = RunDir(folder, state)
    directory.update_state()
    model_dir = Path(client.download_artifacts(run_id, MODEL_DIR, str(folder)))
    directory.update_state(status="finished", model_digest=folder_digest(model_dir))
    return RunArtifact(model_dir, fingerprint, name, run_id)


def existing_store(uri: str) -> Any:
    """A client of the store, or None where there is none yet; MLflow, which takes seconds, is then not imported."""
    path = sqlite_path(uri)
    if path and not path.exists():
        return None
    check_reachable(uri)
    return mlflow_client(absolute_uri(uri))


def mlflow_client(uri: str) -> Any:
    """A client of the store at an absolute URL."""
    import mlflow

    if uri.startswith(SQLITE) and "%" in uri:
        from mlflow.store.db import utils

        # absolute_uri has created the folder; MLflow would create another one, with the quoted name.
        utils._make_parent_dirs_if_sqlite = lambda db_uri: None
    return mlflow.MlflowClient(uri)


def check_reachable(uri: str) -> None:
    """Raise MannersError at once where a tracking server does not answer, before any model is loaded."""
    try:
        server = urlparse(uri)
        port = server.port or {"http": 80, "https": 443}.get(server.scheme, 0)
    except ValueError:  # it may quote the password, which looks like a port where it has a slash
        raise MannersError(f"tracking.uri={uri} is no address. A / in a password is written %2F.") from None
    if server.scheme not in ("http", "https"):
        return
    try:
        socket.create_connection((server.hostname or "", port), timeout=3).close()
    except OSError as error:
        raise MannersError(
            f"tracking.uri={uri}: no server answers ({error}). Start one, or track without: "
            "tracking.uri=sqlite:///outputs/mlflow.db"
        ) from None


@contextmanager
def sqlite_lock(uri: str) -> Iterator[None]:
    """Keep other processes of this machine from the SQLite store at an absolute URL: two that create one break it."""
    if not uri.startswith(SQLITE):
        yield
        return
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  which takes seconds: before the others have to wait

    for name in ("mlflow", "alembic"):  # they log each table that they create
        logging.getLogger(name).setLevel(logging.WARNING)
    with FileLock(unquote(uri.removeprefix(SQLITE)) + ".lock"):
        yield


def absolute_uri(uri: str) -> str:
    """A SQLite path as an absolute URL, in which SQLAlchemy reads ``%`` and ``?`` as part of it; creates its folder.

    Raises MannersError where the folder cannot be created.
    """
    path = sqlite_path(uri)
    if path is None:
        return uri
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MannersError(f"tracking.uri={uri}: {path.parent} cannot be created ({error.strerror}).") from None
    return SQLITE + str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store, as ``tracking.uri`` names it; None for any other store."""
    return Path(uri.removeprefix(SQLITE)).expanduser().resolve() if uri.startswith(SQLITE) else None


def ui_command(uri: str) -> str:
    """What shows the runs of a store: the address of a server, or the command that starts one."""
    if uri.startswith(("http://", "https://")):
        return redact_secrets(uri)
    if uri == "sqlite:///outputs/mlflow.db" and Path.cwd() == ROOT:
        return "make ui"
    place = shlex.quote(redact_secrets(absolute_uri(uri)))
    return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/mlflow ui --backend-store-uri {place}"


def open_experiment(cfg: DictConfig) -> tuple[Any, str]:
    """A client of the store and the id of the experiment, both created where they are new."""
    uri = absolute_uri(cfg.tracking.uri)
    with sqlite_lock(uri):
        client = mlflow_client(uri)
        return client, experiment_id(client, cfg)


def experiment_id(client: Any, cfg: DictConfig) -> str:
    """The id of the experiment. A server keeps artifacts by itself; for a bare database they go to ``output_dir``.

    Raises MannersError for an experiment that was deleted, which takes no runs.
    """
    existing = client.get_experiment_by_name(cfg.tracking.experiment)
    if existing and existing.lifecycle_stage != "active":
        uri = shlex.quote(redact_secrets(absolute_uri(cfg.tracking.uri)))
        raise MannersError(
            f"tracking.experiment={existing.name} was deleted in the tracking store. Restore it: MLFLOW_TRACKING_URI="
            f"{uri} .venv/bin/mlflow experiments restore --experiment-id {existing.experiment_id}; or choose another "
            "name: experiment_name=NAME",
            "experiment_name",
        )
    if existing:
        return str(existing.experiment_id)
    local = urlparse(cfg.tracking.uri).scheme not in ("http", "https")
    location = (Path(cfg.output_dir) / "artifacts").resolve().as_uri() if local else None
    created = str(client.create_experiment(cfg.tracking.experiment, artifact_location=location))
    for key, value in experiment_tags(created).items():
        client.set_experiment_tag(created, key, value)
    return created


def experiment_tags(experiment_id: str) -> dict[str, str]:
    """Tags by which MLflow's UI opens an experiment on the saved view, not on its pages for chat traces."""
    page = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
    now, state = int(time.time() * 1000), json.dumps({"selectedColumns": VIEW_COLUMNS})
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"[Runs with their results]({page}); in each, the replies before and after training. "
        "Over seeds: `make report`",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(
            {"name": VIEW, "createdAt": now, "updatedAt": now, "state": state}
        ),
    }


def has_run(client: Any, run_id: str) -> bool:
    """Whether the store has a run that can be continued: it may have been deleted, or be another store than before."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def check_not_deleted(client: Any, run_id: str, uri: str) -> None:
    """Raises MannersError for a run that was deleted, and can be restored."""
    if client.get_run(run_id).info.lifecycle_stage == "deleted":
        place = shlex.quote(redact_secrets(absolute_uri(uri)))
        raise MannersError(
            f"this run was deleted from the store. Restore it first: MLFLOW_TRACKING_URI={place} mlflow runs restore "
            f"--run-id {run_id}"
        )


def logged_steps(client: Any, run_id: str) -> dict[str, set[int]]:
    """The steps that the store has of each metric."""
    names = [n for n in client.get_run(run_id).data.metrics if not n.startswith("system/")]
    return {n: {m.step for m in client.get_metric_history(run_id, n)} for n in names}


def log_evaluation(
    cfg: DictConfig,
    name: str,
    tags: dict[str, str],
    metrics: dict[str, float],
    folder: Path,
    tables: dict[str, dict[str, list[str]]] | None = None,
    replies: Mapping[str, Sequence[AssessedReply]] | None = None,
) -> None:
    """A run for what was measured after training: metrics, tables by columns, and all files of ``folder``.

    ``replies`` of each model become traces, of which MLflow's pages for evaluations make tables side by side.
    A store that does not take it costs one line on stderr; the folder has everything.
    """
    try:
        check_reachable(cfg.tracking.uri)
        client, experiment = open_experiment(cfg)
        run_id = client.create_run(experiment, tags={"mlflow.runName": name} | tags).info.run_id
        for key, value in metrics.items():
            client.log_metric(run_id, key, value)
        client.log_artifacts(run_id, str(folder))
        for table, columns in (tables or {}).items():
            client.log_table(run_id, columns, f"{table}.json")
        if replies:
            log_traces(absolute_uri(cfg.tracking.uri), experiment, run_id, replies)
        client.set_terminated(run_id)
    except Exception as error:  # noqa: BLE001  whatever a server does wrong
        reason = redact_secrets((str(error) or type(error).__name__).splitlines()[0])
        print(f"not in the tracking store ({reason}); all of it is in {folder}", file=sys.stderr)
