"""The MLflow store: whether it is there, and what it holds of earlier runs."""

import fcntl
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from omegaconf import DictConfig

from manners.errors import MannersError, did_you_mean
from manners.runtime.run_dir import MODEL_DIR, RunArtifact
from manners.tracking import ui

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it names the run at each word of its end


def find_stage_run(cfg: DictConfig, mark: str) -> RunArtifact | None:
    """The newest finished run with this stage mark; its model is fetched into ``output_dir``."""
    client = existing_store(cfg.tracking.uri)
    if client is None:
        return None
    everywhere = [e.experiment_id for e in client.search_experiments()]
    wanted = f"tags.`manners.stage_mark` = '{mark}' and attributes.status = 'FINISHED'"
    runs = client.search_runs(everywhere, wanted, max_results=1)
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
    asked = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", name)
    if asked is None:
        raise MannersError(f"{name}: the registry knows models:/NAME@ALIAS and models:/NAME/VERSION.")
    client = existing_store(cfg.tracking.uri)
    models = client.search_registered_models() if client else []
    if not models:
        raise MannersError(f"{name}: nothing is registered in {cfg.tracking.uri}. First: python train.py register_model=true")
    from mlflow.exceptions import MlflowException

    model, alias, version = asked.groups()
    try:
        found = client.get_model_version_by_alias(model, alias) if alias else client.get_model_version(model, version)
        run = client.get_run(found.run_id or "none")  # somebody else's model may have come from no run
    except MlflowException:
        known = [f"models:/{m.name}@{alias}" for m in models for alias in m.aliases]
        known += [f"models:/{m.name}/{v.version}" for m in models for v in m.latest_versions]
        near = did_you_mean(name, known)
        raise MannersError(f"{name} is no run's model in the registry of {cfg.tracking.uri}. {near}") from None
    made = download_run(client, run, cfg.output_dir)
    if made is None:
        raise MannersError(f"{name} is of the run {run.info.run_name}, of which the store has no model.")
    return made


def download_run(client: Any, run: Any, output_dir: str) -> RunArtifact | None:
    """The run's model, downloaded where its folder is not on this machine."""
    tags, run_id = run.data.tags, run.info.run_id
    mark, name = tags.get("manners.stage_mark", run_id[:12]), tags.get("mlflow.runName", run_id)
    here = Path(tags.get("manners.folder", "")) / MODEL_DIR
    if here.is_dir():
        return RunArtifact(here, mark, name, run_id)
    if not any(f.path == MODEL_DIR for f in client.list_artifacts(run_id)):
        return None
    folder = Path(output_dir) / "fetched" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {role: tags[key] for role in ("policy", "reward") if (key := f"manners.{role}_run_id") in tags}
    state = {"stage_mark": mark, "mlflow_run_id": run_id, "summary": tags.get("manners.summary", ""), "inputs": inputs}
    (folder / "run.json").write_text(json.dumps(state))
    return RunArtifact(Path(client.download_artifacts(run_id, MODEL_DIR, str(folder))), mark, name, run_id)


def existing_store(uri: str) -> Any:
    """A client of the store, or None where there is none yet; then MLflow, which takes seconds, is not imported."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return None
    check_reachable(uri)
    import mlflow

    return mlflow.MlflowClient(absolute_uri(uri))


def check_reachable(uri: str) -> None:
    """A server that is not there is said so at once, before any model is loaded."""
    server = urlparse(uri)
    if server.scheme not in ("http", "https"):
        return
    port = server.port or {"http": 80, "https": 443}[server.scheme]
    try:
        socket.create_connection((server.hostname or "", port), timeout=3).close()
    except OSError as error:
        raise MannersError(
            f"tracking.uri={uri}: no server answers ({error}). Start one, or track without: "
            "tracking.uri=sqlite:///outputs/mlflow.db"
        ) from None


@contextmanager
def sqlite_lock(uri: str) -> Iterator[None]:
    """Within, no other process of this machine opens the SQLite store for the first time."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  which takes seconds: before the others have to wait

    for name in ("mlflow", "alembic"):  # they tell of each table that they make
        logging.getLogger(name).setLevel(logging.WARNING)
    with Path(uri.removeprefix("sqlite:///") + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def absolute_uri(uri: str) -> str:
    """A SQLite path, made independent of the working folder; its folder is made."""
    if not uri.startswith("sqlite:///"):
        return uri
    path = Path(uri.removeprefix("sqlite:///")).resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MannersError(f"tracking.uri={uri}: {path.parent} cannot be made ({error.strerror}).") from None
    return f"sqlite:///{path}"


def open_experiment(cfg: DictConfig) -> tuple[Any, str]:
    """A client of the store, which is made where it is new, and the experiment in it."""
    import mlflow

    uri = absolute_uri(cfg.tracking.uri)
    with sqlite_lock(uri):  # two processes that make a fresh SQLite store at once break it
        client = mlflow.MlflowClient(uri)
        return client, experiment_id(client, cfg)


def experiment_id(client: Any, cfg: DictConfig) -> str:
    """The experiment, made where it is new. A server keeps the artifacts; a database alone leaves them to us."""
    found = client.get_experiment_by_name(cfg.tracking.experiment)
    if found:
        return str(found.experiment_id)
    local = urlparse(cfg.tracking.uri).scheme not in ("http", "https")
    place = (Path(cfg.output_dir) / "artifacts").resolve().as_uri() if local else None
    made = str(client.create_experiment(cfg.tracking.experiment, artifact_location=place))
    for key, value in ui.experiment_tags(made).items():
        client.set_experiment_tag(made, key, value)
    return made


def logged_steps(client: Any, run_id: str) -> dict[str, set[int]]:
    """The steps that the store holds of each metric."""
    names = [n for n in client.get_run(run_id).data.metrics if not n.startswith("system/")]
    return {n: {m.step for m in client.get_metric_history(run_id, n)} for n in names}


def log_evaluation(
    cfg: DictConfig,
    name: str,
    tags: dict[str, str],
    metrics: dict[str, float],
    folder: Path,
    tables: dict[str, dict[str, list[str]]] | None = None,
) -> None:
    """A run of its own for what was measured after training: its numbers, tables (by columns), and all of ``folder``.

    A store that does not take it is told of in one line; the folder has it all.
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
        client.set_terminated(run_id)
    except Exception as error:  # noqa: BLE001  whatever a server does wrong
        print(f"not in the tracking store ({str(error).splitlines()[0]}); all of it is in {folder}", file=sys.stderr)
