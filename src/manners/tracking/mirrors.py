"""``report_to``: the metrics of a run beside MLflow, in TensorBoard or Weights & Biases, by Lightning's loggers.

MLflow and ``metrics.jsonl`` are the record. A mirror is written from it, so that a resumed run has each step once. One
that fails costs a line on stderr, and no training.
"""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from manners.redact import redact_secrets

TENSORBOARD_DIR = "tensorboard"  # in the run directory


class Mirrors:
    """The loggers of ``cfg.report_to`` but MLflow; each is dropped at its first failure."""

    def __init__(self, cfg: DictConfig, folder: Path):
        """Begin with what ``metrics.jsonl`` in ``folder`` has of an earlier part of the run."""
        self.loggers: dict[str, Any] = {}
        for name in cfg.report_to:
            if name != "mlflow":
                self._try(name, partial(self._open, name, cfg, folder))
        metrics = folder / "metrics.jsonl"
        for line in metrics.read_text().splitlines() if self.loggers and metrics.exists() else ():
            record = json.loads(line)
            self.log({key: value for key, value in record.items() if key not in ("step", "time")}, record["step"])

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, logger in list(self.loggers.items()):
            self._try(name, partial(logger.log_metrics, metrics, step))

    def close(self, status: str) -> None:
        """End them; ``status`` is MLflow's word for how the run ended."""
        for name, logger in list(self.loggers.items()):
            self._try(name, partial(logger.finalize, "success" if status == "FINISHED" else "failed"))
            if name == "wandb":  # a sweep has several runs in one process
                self._try(name, partial(end_wandb_run, logger, status))

    def _open(self, name: str, cfg: DictConfig, folder: Path) -> None:
        self.loggers[name] = make_logger(name, cfg, folder)

    def _try(self, name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  whatever it does wrong, the run goes on
            self.loggers.pop(name, None)
            reason = redact_secrets((str(error) or type(error).__name__).splitlines()[0])
            print(f"report_to: {name} fails and gets nothing more of this run ({reason})", file=sys.stderr)


def end_wandb_run(logger: Any, status: str) -> None:
    logger.experiment.finish(exit_code=int(status != "FINISHED"))


def make_logger(name: str, cfg: DictConfig, folder: Path) -> Any:
    """Lightning's logger ``name`` of the run in ``folder``."""
    from lightning.pytorch import loggers

    if name == "tensorboard":
        shutil.rmtree(folder / TENSORBOARD_DIR, ignore_errors=True)  # of a killed run: it is written anew
        return loggers.TensorBoardLogger(folder, name="", version=TENSORBOARD_DIR)
    return loggers.WandbLogger(project=cfg.tracking.experiment, name=folder.name, id=folder.name, save_dir=folder)
