"""The MLflow store: whether it is there, and what it holds of earlier runs."""

import fcntl
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from omegaconf import DictConfig

from manners.errors import MannersError
from manners.lineage import MODEL, Input


def find(cfg: DictConfig, mark: str) -> Input | None:
    """The newest finished run with this stage mark; its model is fetched into ``output_dir``."""
    client = existing(cfg.tracking.uri)
    if client is None:
        return None
    everywhere = [e.experiment_id for e in client.search_experiments()]
    wanted = f"tags.`manners.stage_mark` = '{mark}' and attributes.status = 'FINISHED'"
    runs = client.search_runs(everywhere, wanted, max_results=1)
    return bring(client, runs[0], cfg.output_dir) if runs else None


def fetch(cfg: DictConfig, run_id: str) -> Input | None:
    """The run with this MLflow id, or None."""
    client = existing(cfg.tracking.uri) if re.fullmatch("[0-9a-f]{32}", run_id) else None
    if client is None:
        return None
    from mlflow.exceptions import MlflowException

    try:
        return bring(client, client.get_run(run_id), cfg.output_dir)
    except MlflowException:
        return None


def bring(client: Any, run: Any, output_dir: str) -> Input | None:
    """The run's model, downloaded where its folder is not on this machine."""
    tags, run_id = run.data.tags, run.info.run_id
    mark, name = tags.get("manners.stage_mark", run_id[:12]), tags.get("mlflow.runName", run_id)
    here = Path(tags.get("manners.folder", "")) / MODEL
    if here.is_dir():
        return Input(here, mark, name, run_id)
    if not any(f.path == MODEL for f in client.list_artifacts(run_id)):
        return None
    folder = Path(output_dir) / "fetched" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    return Input(Path(client.download_artifacts(run_id, MODEL, str(folder))), mark, name, run_id)


def existing(uri: str) -> Any:
    """A client of the store, or None where there is none yet; then MLflow, which takes seconds, is not imported."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return None
    check_reachable(uri)
    import mlflow

    return mlflow.MlflowClient(absolute(uri))


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
def alone(uri: str) -> Iterator[None]:
    """Within, no other process of this machine opens the SQLite store for the first time."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    with Path(uri.removeprefix("sqlite:///") + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def absolute(uri: str) -> str:
    """A SQLite path, made independent of the working folder; its folder is made."""
    if not uri.startswith("sqlite:///"):
        return uri
    path = Path(uri.removeprefix("sqlite:///")).resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MannersError(f"tracking.uri={uri}: {path.parent} cannot be made ({error.strerror}).") from None
    return f"sqlite:///{path}"


def experiment_id(client: Any, cfg: DictConfig) -> str:
    """The experiment, made where it is new. With SQLite its artifacts lie beside the database."""
    found = client.get_experiment_by_name(cfg.tracking.experiment)
    if found:
        return str(found.experiment_id)
    local = cfg.tracking.uri.startswith("sqlite:///")
    place = (Path(cfg.output_dir) / "artifacts").resolve().as_uri() if local else None
    return str(client.create_experiment(cfg.tracking.experiment, artifact_location=place))


def last_steps(client: Any, run_id: str) -> dict[str, int]:
    """The last step that the store holds of each metric."""
    names = [n for n in client.get_run(run_id).data.metrics if not n.startswith("system/")]
    return {n: max(m.step for m in client.get_metric_history(run_id, n)) for n in names}


def record(
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
        import mlflow

        uri = absolute(cfg.tracking.uri)
        with alone(uri):
            client = mlflow.MlflowClient(uri)
            experiment = experiment_id(client, cfg)
        run_id = client.create_run(experiment, tags={"mlflow.runName": name} | tags).info.run_id
        for key, value in metrics.items():
            client.log_metric(run_id, key, value)
        client.log_artifacts(run_id, str(folder))
        for table, columns in (tables or {}).items():
            client.log_table(run_id, columns, f"{table}.json")
        client.set_terminated(run_id)
    except Exception as error:  # noqa: BLE001  whatever a server does wrong
        print(f"not in the tracking store ({str(error).splitlines()[0]}); all of it is in {folder}", file=sys.stderr)
