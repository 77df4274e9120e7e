"""One MLflow run: its params, metrics, data and artifacts. Only this and ``store`` import mlflow.

Metrics go to ``metrics.jsonl`` in the run folder at once, and to MLflow from a thread of their own, so that neither a
slow nor a vanished server costs training anything.
"""

import json
import logging
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from manners import store
from manners.errors import MannersError
from manners.lineage import Folder, Input

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # seven tries would hold up the end of a run
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
PACKAGES = ("torch", "transformers", "peft", "lightning", "mlflow", "hydra-core", "datasets", "bitsandbytes")


class Silent:
    """What the other processes of a distributed run are handed: nothing they say is kept, one speaks for all."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...

    def artifact(self, path: Path, folder: str | None = None) -> None: ...

    def table(self, records: list[dict[str, Any]], name: str) -> None: ...

    def tag(self, **tags: str) -> None: ...

    def describe(self, markdown: str) -> None: ...


class Tracker:
    """One MLflow run. ``log(metrics, step)`` returns at once; a step that the store has already is left out."""

    def __init__(self, client: Any, run_id: str, metrics_file: Path, known: dict[str, int]):
        self.client, self.run_id, self.metrics_file, self.known = client, run_id, metrics_file, known
        self.lost = 0
        self.queue: queue.Queue[tuple[dict[str, float], int, int] | None] = queue.Queue()
        self.thread = threading.Thread(target=self._send, daemon=True)
        self.thread.start()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Metrics of an optimizer step. A resumed run repeats some steps: each is kept once."""
        new = {k: float(v) for k, v in metrics.items() if step > self.known.get(k, -1)}
        if not new:
            return
        self.known |= dict.fromkeys(new, step)
        with self.metrics_file.open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **new}) + "\n")
        self.queue.put((new, step, int(time.time() * 1000)))

    def catch_up(self) -> None:
        """Send what a kill kept from the store: the file has it, and the resumed run does not say it again."""
        lines = self.metrics_file.read_text().splitlines() if self.metrics_file.exists() else []
        for record in map(json.loads, lines):
            step, at = record.pop("step"), record.pop("time")
            new = {k: v for k, v in record.items() if step > self.known.get(k, -1)}
            if new:
                self.known |= dict.fromkeys(new, step)
                self.queue.put((new, step, int(at * 1000)))

    def _send(self) -> None:
        from mlflow.entities import Metric

        while (item := self.queue.get()) is not None:
            batch = [item]
            while not self.queue.empty() and len(batch) < 40:
                more = self.queue.get()
                if more is None:
                    self.queue.put(None)
                    break
                batch.append(more)
            metrics = [Metric(k, v, at, step) for values, step, at in batch for k, v in values.items()]
            try:
                self.client.log_batch(self.run_id, metrics=metrics)
            except Exception:  # noqa: BLE001  whatever a server does wrong, the training goes on
                self.lost += len(metrics)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        try:
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), folder or path.name)
            else:
                self.client.log_artifact(self.run_id, str(path), folder)
        except Exception as error:  # noqa: BLE001  the file itself stays in the run folder
            print(f"could not send {path.name} to the tracking server ({error}); it is kept at {path}", file=sys.stderr)

    def table(self, records: list[dict[str, Any]], name: str) -> None:
        """A table of its own. One that is there already stays: a resumed run repeats it, and MLflow would append."""
        if not records:
            return
        columns = {key: [r[key] for r in records] for key in records[0]}
        try:
            beside = self.client.list_artifacts(self.run_id, name.rpartition("/")[0] or None)
            if name in [f.path for f in beside]:
                return
            self.client.log_table(self.run_id, columns, name)
        except Exception as error:  # noqa: BLE001
            print(f"could not send {name} to the tracking server ({error})", file=sys.stderr)

    def tag(self, **tags: str) -> None:
        for key, value in tags.items():
            try:
                self.client.set_tag(self.run_id, f"manners.{key}" if not key.startswith("mlflow") else key, value)
            except Exception:  # noqa: BLE001
                self.lost += 1

    def describe(self, markdown: str) -> None:
        """What the MLflow UI shows at the top of the run."""
        try:
            self.client.set_tag(self.run_id, "mlflow.note.content", markdown[:7900])
        except Exception:  # noqa: BLE001
            self.lost += 1

    def close(self) -> None:
        self.queue.put(None)
        self.thread.join(timeout=60)
        if self.lost:
            print(
                f"{self.lost} values did not reach the tracking server; they are in {self.metrics_file}",
                file=sys.stderr,
            )


@contextmanager
def open_run(
    cfg: DictConfig, folder: Folder, rows: int, digest: str, inputs: dict[str, Input], overrides: list[str]
) -> Iterator[Tracker]:
    """Start the MLflow run, or go on with the one that ``folder`` remembers; it ends as finished or failed.

    It is linked by tags, both ways, with the runs of its ``inputs``. ``overrides`` are those of its own command.
    """
    store.check_reachable(cfg.tracking.uri)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    uri = store.absolute(cfg.tracking.uri)
    mlflow.set_tracking_uri(uri)
    try:
        with store.alone(uri):  # two processes that make a fresh SQLite store at once break it
            client = mlflow.MlflowClient(uri)
            experiment = store.experiment_id(client, cfg)
        run_id = folder.state.get("mlflow_run_id")
        known = store.last_steps(client, run_id) if run_id else {}
        run = mlflow.start_run(
            run_id=run_id,
            experiment_id=experiment,
            run_name=folder.path.name,
            log_system_metrics=bool(cfg.tracking.system_metrics),
        )
    except Exception as error:
        raise MannersError(
            f"tracking.uri={cfg.tracking.uri} refuses: {str(error).splitlines()[0]}. Without a server: "
            "tracking.uri=sqlite:///outputs/mlflow.db"
        ) from error
    tracker = Tracker(client, run.info.run_id, folder.path / "metrics.jsonl", known)
    status = "FAILED"
    try:
        folder.remember(mlflow_run_id=run.info.run_id)
        if not folder.state.get("described"):  # a kill may have come before; to say it twice does no harm
            describe_run(mlflow, client, run.info.run_id, cfg, folder, rows, digest, overrides)
            link(tracker, folder, inputs)
            folder.remember(described=True)
        tracker.catch_up()
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception as error:
        tracker.tag(error=f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        tracker.close()
        try:
            mlflow.end_run(status)
        except Exception as error:  # noqa: BLE001
            print(f"the tracking server did not take the end of the run ({error})", file=sys.stderr)


def describe_run(
    mlflow: Any,
    client: Any,
    run_id: str,
    cfg: DictConfig,
    folder: Folder,
    rows: int,
    digest: str,
    overrides: list[str],
) -> None:
    """Config, overrides, code, versions and data of a new run."""
    (folder.path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    client.log_artifact(run_id, str(folder.path / "config.yaml"))
    mlflow.log_params(flatten(OmegaConf.to_container(cfg, resolve=True)))
    commit, diff = git_state()
    (folder.path / "code.diff").write_text(diff)
    client.log_artifact(run_id, str(folder.path / "code.diff"))
    tags = {f"version.{p}": version(p) for p in PACKAGES} | {"version.python": sys.version.split()[0]}
    tags |= {"manners.git_commit": commit, "manners.git_dirty": str(bool(diff)), "manners.data_digest": digest}
    tags |= {"manners.fingerprint": folder.state["fingerprint"], "manners.stage_mark": folder.state["stage_mark"]}
    tags |= {"manners.method": cfg.method.name, "manners.overrides": shlex.join(overrides)}
    mlflow.set_tags(tags | {"manners.folder": str(folder.path.resolve())})
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    source = CodeDatasetSource({"dataset.path": str(cfg.dataset.path), "rows": str(rows)})
    data = MetaDataset(source, name=Path(cfg.dataset.path).name, digest=digest)  # type: ignore[abstract]
    mlflow.log_input(data, context="training")


def link(tracker: Tracker, folder: Folder, inputs: dict[str, Input]) -> None:
    """Tags on this run name those it came from; a tag on each of them names this one."""
    for role, found in inputs.items():
        tracker.tag(**{role: found.run, f"{role}_run_id": found.run_id})
        if found.run_id:
            try:
                tracker.client.set_tag(found.run_id, f"manners.used_by.{folder.path.name}", tracker.run_id)
            except Exception:  # noqa: BLE001  it may be in another store
                tracker.lost += 1


def flatten(node: Any, path: str = "") -> dict[str, str]:
    if not isinstance(node, dict):
        return {path: str(node)}
    found: dict[str, str] = {}
    for key, value in node.items():
        found |= flatten(value, f"{path}.{key}" if path else str(key))
    return found


def git_state() -> tuple[str, str]:
    """The commit and the diff against it; empty where the code is no checkout."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    return git("rev-parse", "HEAD").strip(), git("diff", "HEAD")
