"""The MLflow run that a sweep's jobs are nested under: its table, its figure, and its best result."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import DictConfig

from manners.tracking import logger, store  # noqa: F401  tracking says what MLflow is to be, before it is imported

STATE = "sweep.json"


class SweepRun:
    """Opened for the time of the sweep; the same sweep, started again, goes on with the same run."""

    def __init__(self, cfg: DictConfig, folder: Path, arguments: list[str]):
        store.check_reachable(cfg.tracking.uri)
        self.client, experiment = store.open_experiment(cfg)
        state = folder / STATE
        if state.exists():
            self.run_id = str(json.loads(state.read_text())["run_id"])
            self.client.update_run(self.run_id, status="RUNNING")
            return
        command = shlex.join(["python", "train.py", "-m", *arguments])
        tags = {"manners.sweep": folder.name, "manners.method": cfg.method.name, "manners.command": command}
        tags |= {"manners.folder": str(folder), "mlflow.note.content": f"A sweep, still at work: `{command}`"}
        self.run_id = self.client.create_run(experiment, run_name=folder.name, tags=tags).info.run_id
        part = folder / f"{STATE}.part"
        part.write_text(json.dumps({"run_id": self.run_id, "command": command}))
        os.replace(part, state)

    def __enter__(self) -> "SweepRun":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        stopped = kind is not None and not issubclass(kind, Exception)
        with report_store_errors():
            status = "KILLED" if stopped else "FINISHED" if kind is None else "FAILED"
            self.client.set_terminated(self.run_id, status)

    def tell(self, files: list[Path], markdown: str, metrics: dict[str, float], tags: dict[str, Any]) -> None:
        """A store that went away meanwhile has cost nothing: the same command says it again."""
        with report_store_errors():
            for file in files:
                self.client.log_artifact(self.run_id, str(file))
            for key, value in metrics.items():
                self.client.log_metric(self.run_id, key, value)
            for key, value in (tags | {"mlflow.note.content": markdown[:7900]}).items():
                self.client.set_tag(self.run_id, key, value)


@contextmanager
def report_store_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001  whatever a server does wrong
        print(f"the sweep's own run could not be written ({str(error).splitlines()[0]})", file=sys.stderr)
