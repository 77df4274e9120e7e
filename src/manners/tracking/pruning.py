"""Pruning: a job of a search reports its metric to Optuna, which may stop it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from manners.config.schema import OBJECTIVE
from manners.errors import Pruned

if TYPE_CHECKING:
    import optuna

STUDY = "sweep"
MetricsCallback = Callable[[dict[str, float], int], None]


def make_pruner(name: str) -> "optuna.pruners.BasePruner":
    """The pruner that ``sweep.pruner`` names."""
    import optuna

    pruners = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    return pruners[name]()


def journal_storage(journal: Path) -> "optuna.storages.JournalStorage":
    """The trials of a search, in a file that a killed search resumes from."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(journal)))


def pruning_callback(cfg: DictConfig) -> MetricsCallback | None:
    """What looks at the metrics of a job of a search, and raises Pruned where they are behind; None elsewhere."""
    if cfg.sweep.trial is None:
        return None
    import optuna  # which takes a second

    metric = OBJECTIVE[cfg.method.name][0]
    study = optuna.load_study(study_name=STUDY, storage=journal_storage(Path(cfg.sweep.journal)))
    trial = optuna.trial.Trial(study, cfg.sweep.trial)
    trial.study.pruner = make_pruner(cfg.sweep.pruner)

    def report(metrics: dict[str, float], step: int) -> None:
        """Report the metric of a step to Optuna. Raises Pruned."""
        if metric in metrics:
            trial.report(metrics[metric], step)
            if trial.should_prune():
                value = f"{metric} {metrics[metric]:.4g}"
                raise Pruned(f"pruned at step {step}: {value} is behind the earlier jobs'")

    return report
