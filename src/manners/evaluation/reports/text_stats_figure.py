"""The text statistics of several models side by side, as points with their intervals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import PercentFormatter

from manners.errors import MannersError
from manners.evaluation.metrics.assistant_style import CORE_FEATURES, UNITS
from manners.evaluation.reports.figures import AFTER, BEFORE, save_figure
from manners.evaluation.stats import Estimate

StatsByModel = Mapping[str, Mapping[str, Estimate]]

# distinguishable in greyscale
MARKERS = [(BEFORE, "o"), (AFTER, "D"), ("#e8590c", "s"), ("#5f3dc4", "^"), ("#2b8a3e", "v")]
MAX_FRACTIONS = 11  # that are plotted


def draw_text_stats(stats: StatsByModel, out: Path) -> Path:
    """Plot the statistics of each model by name, the model to compare with first, with their 95 % intervals.

    Fractions share one axis, and every other unit has its own. All axes include 0, so that a small difference looks
    small. After ``CORE_FEATURES``, the fractions that differ most between the models are shown. Raises MannersError for
    too many models.
    """
    if not 1 <= len(stats) <= len(MARKERS):
        raise MannersError(
            f"the figure of text statistics shows 1 to {len(MARKERS)} models, not {len(stats)}: name fewer."
        )
    other_units = [[name] for name in feature_names(stats) if not is_fraction(stats, name)]
    panels = [names for names in (*other_units[:1], fractions_to_draw(stats), *other_units[1:]) if names]
    heights = [len(names) * (0.16 + 0.085 * len(stats)) for names in panels]
    size = (7.5, sum(heights) + 0.55 * len(panels) + 0.4)
    figure = plt.figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), height_ratios=heights, squeeze=False)[:, 0]
    for axes, names in zip(grid, panels, strict=True):
        draw_rows(axes, stats, names)
        axes.axvline(0, color=BEFORE, linewidth=0.8, zorder=0)
        axes.set_xlabel(UNITS.get(names[0], ""))
        if is_fraction(stats, names[0]):
            axes.set_xlabel("fraction (95 % intervals)")
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=min(3, len(stats)))
    return save_figure(figure, out)


def feature_names(stats: StatsByModel) -> list[str]:
    """Return the features that some model has, in order."""
    return list(dict.fromkeys(name for model_stats in stats.values() for name in model_stats))


def is_fraction(stats: StatsByModel, name: str) -> bool:
    return name not in UNITS and all(of_model[name].high <= 1 for of_model in stats.values() if name in of_model)


def fractions_to_draw(stats: StatsByModel) -> list[str]:
    """Return the fractions of CORE_FEATURES, then the others by decreasing difference between the models."""
    known = [name for name in feature_names(stats) if is_fraction(stats, name)]
    core = [name for name in CORE_FEATURES if name in known]
    others = sorted(set(known).difference(core), key=lambda name: (-max_difference(stats, name), name))
    return [*core, *others][:MAX_FRACTIONS]


def max_difference(stats: StatsByModel, name: str) -> float:
    values = [model_stats[name].value for model_stats in stats.values() if name in model_stats]
    return max(values) - min(values)


def draw_rows(axes: Any, stats: StatsByModel, names: list[str]) -> None:
    """Plot one row for each feature, with a point for each model."""
    for (model, model_stats), (color, marker), shift in zip(stats.items(), MARKERS, offsets(len(stats)), strict=False):
        known = [(i + shift, model_stats[name]) for i, name in enumerate(names) if name in model_stats]
        y = np.array([position for position, _ in known])
        estimates = np.array([[e.low, e.value, e.high] for _, e in known]).reshape(-1, 3)
        errors = np.diff(estimates, axis=1).T.clip(0)  # with few replies, a percentile interval may exclude the value
        axes.errorbar(
            estimates[:, 1], y, xerr=errors, fmt=marker, color=color, markersize=4.5, elinewidth=1.5, label=model
        )
    for line in range(1, len(names)):
        axes.axhline(line - 0.5, color="#dee2e6", linewidth=0.6)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def offsets(models: int) -> np.ndarray:
    """Return the vertical offsets of the models' points from the middle of a row of height 1: (models,)."""
    return (np.arange(models) - (models - 1) / 2) * 0.7 / models
