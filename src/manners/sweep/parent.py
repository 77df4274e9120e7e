"""The MLflow run that a sweep's jobs are nested under: its table, figure and best result."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import DictConfig

from manners.redact import redact_secrets
from manners.runtime.atomic_io import atomic_write
from manners.tracking import logger, store  # logger sets MLflow's environment, before MLflow is imported

STATE_FILE = "sweep.json"


class SweepRun:
    """The parent run, open while the sweep is; the same sweep, started again, continues the same run."""

    def __init__(self, cfg: DictConfig, folder: Path, arguments: list[str]):
        store.check_reachable(cfg.tracking.uri)
        self.client, experiment = store.open_experiment(cfg)
        state_file = folder / STATE_FILE
        if state_file.exists():
            self.run_id = str(json.loads(state_file.read_text())["run_id"])
            if store.has_run(self.client, self.run_id):
                self.client.update_run(self.run_id, status="RUNNING")
                return
        command = redact_secrets(shlex.join(["python", "train.py", "-m", *arguments]))
        tags = {
            "manners.sweep": folder.name,
            "manners.method": cfg.method.name,
            "manners.command": command,
            "manners.folder": str(folder),
            "mlflow.note.content": f"A sweep, still running: `{command}`",
        }
        self.run_id = self.client.create_run(experiment, run_name=folder.name, tags=tags).info.run_id
        with atomic_write(state_file) as file:
            file.write(json.dumps({"run_id": self.run_id, "command": command}).encode())

    def __enter__(self) -> "SweepRun":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        stopped = kind is not None and not issubclass(kind, Exception)
        with print_store_errors():
            status = "KILLED" if stopped else "FINISHED" if kind is None else "FAILED"
            self.client.set_terminated(self.run_id, status)

    def log_report(self, files: list[Path], markdown: str, metrics: dict[str, float], tags: dict[str, Any]) -> None:
        """Log the report to the run. A store that went away costs nothing: the same command logs it again."""
        with print_store_errors():
            for file in files:
                self.client.log_artifact(self.run_id, str(file))
            for key, value in metrics.items():
                self.client.log_metric(self.run_id, key, value)
            for key, value in (tags | {"mlflow.note.content": markdown[: logger.MAX_NOTE_CHARS]}).items():
                self.client.set_tag(self.run_id, key, value)


@contextmanager
def print_store_errors() -> Iterator[None]:
    """Print an error of the store instead of raising it: the sweep's results are in its directory."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  whatever a server does wrong
        print(f"the sweep's own run could not be written ({str(error).splitlines()[0]})", file=sys.stderr)
