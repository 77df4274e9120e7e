"""A sweep as a figure: Optuna's slice plot where one option varies, its parallel coordinates where several do.

Optuna draws a grid too: its jobs are added to a study in memory as trials.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed
import matplotlib.pyplot as plt
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.visualization import matplotlib as optuna_plots

from manners.sweep.jobs import SweepJob

LOG_RATIO = 20  # a range whose ends differ by this factor gets a logarithmic axis


def plot_sweep(jobs: Sequence[SweepJob], metric: str, direction: str, path: Path) -> list[Path]:
    """Plot the metric of each finished job over the options that vary, seeds as points of their own.

    Returns the files that were written: none where there is nothing to compare.
    """
    finished = [job for job in jobs if job.status == "finished"]
    values = {key: [job.choice.get(key) for job in finished] for job in finished for key in job.choice}
    varying = {key: axis_values(v) for key, v in values.items() if key != "seed" and len(set(v)) > 1}
    if not varying:
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it says that it made a study
    study = optuna.create_study(direction=direction)  # type: ignore[arg-type]
    for i, job in enumerate(finished):
        params = {key: column[i] for key, (column, _) in varying.items() if column[i] is not None}
        distributions = {key: varying[key][1] for key in params}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=job.metric))
    plot = optuna_plots.plot_slice if len(varying) == 1 else optuna_plots.plot_parallel_coordinate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        axes: Any = plot(study, target_name=f"{metric} ({'less' if direction == 'minimize' else 'more'} is better)")
    axes.figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(axes.figure)
    return [path]


def axis_values(values: list[str | None]) -> tuple[list[Any], BaseDistribution]:
    """The values of an option and their axis: numbers to scale, words in steps. None where a job does not set it."""
    words = sorted({value for value in values if value is not None})
    try:
        numbers = [None if value is None else float(value) for value in values]
    except ValueError:
        return values, CategoricalDistribution(words)
    low, high = min(map(float, words)), max(map(float, words))
    return numbers, FloatDistribution(low, high, log=low > 0 and high / low >= LOG_RATIO)
