"""Figures of reward models, and the training curves of PPO, RLOO, DPO and KTO."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy import ndimage, stats

from manners.evaluation.metrics.reward_quality import RegressionQuality
from manners.evaluation.reports.figures import AFTER, BEFORE, save_figure

DARK = "#495057"
Panel = tuple[dict[int, float], dict[int, float], str]  # training values by step, held-out values by step, title
MAX_STRIPS = 12  # distinct true scores that are drawn as strips

# metric in training, metric on held-out prompts, title
ONLINE_PANELS = [
    ("objective/scores", "eval/scores", "reward per reply"),
    ("objective/kl", "eval/kl", "KL to the reference (nats per reply)"),
    ("objective/length", "eval/length", "length (tokens per reply)"),
    ("policy/entropy_avg", "eval/entropy", "entropy (nats per token)"),
    ("policy/clipfrac_avg", "", "clip fraction"),
    ("objective/distinct_2", "eval/distinct_2", "distinct-2"),
]
PREFERENCE_PANELS = [
    ("train/loss", "eval/loss", "loss"),
    ("train/rewards/accuracies", "eval/rewards/accuracies", "pair accuracy"),
    ("train/rewards/margins", "eval/rewards/margins", "reward margin (β × nats)"),
    ("train/kl", "eval/kl", "KL estimate (nats per reply)"),
]


def score_scatter(
    predicted: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray, out: Path, unit: str = "score"
) -> Path:
    """Plot predicted against true scores, (N,) each; few distinct scores become strips. ``unit`` is for the axes."""
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    levels = np.unique(true)
    gap = np.diff(levels).min() if len(levels) > 1 else 1.0
    strips = len(levels) <= MAX_STRIPS and gap >= 0.08 * max(np.ptp(levels), gap)
    x = true + 0.42 * gap * strip_offsets(predicted, true) if strips else true
    axes.plot([levels[0], levels[-1]], [levels[0], levels[-1]], color=BEFORE, linestyle="--", label="predicted = true")
    axes.scatter(x, predicted, s=9, color=AFTER, alpha=min(0.8, max(0.25, 200 / len(true))), linewidths=0)
    axes.set(xlabel=f"true {unit}", ylabel=f"predicted {unit}")
    if strips:
        by_level = [predicted[true == level] for level in levels]
        quartiles = np.array([np.percentile(p, [25, 50, 75]) for p in by_level])  # (levels, 3)
        axes.vlines(levels, quartiles[:, 0], quartiles[:, 2], color=DARK, linewidth=2)
        axes.plot(levels, quartiles[:, 1], "o", color="white", markeredgecolor=DARK, label="median and quartiles")
        axes.set_xticks(levels, [f"{level:g}\n({len(p)})" for level, p in zip(levels, by_level, strict=True)])
        axes.set_xlabel(f"true {unit} (number of replies)")
    return save_panels(figure, [axes], out)


def strip_offsets(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return horizontal offsets in [-1, 1] (N,) of points (N,): wider where they are dense, as in a violin plot."""
    offsets = np.zeros(len(true))
    for level in np.unique(true):
        rows = np.flatnonzero(true == level)
        values = predicted[rows]
        density = stats.gaussian_kde(values)(values) if len(rows) > 2 and np.ptp(values) > 0 else np.ones(len(rows))
        spread = (np.random.default_rng(0).permutation(len(rows)) + 0.5) / len(rows) * 2 - 1
        offsets[rows] = spread * density / density.max() if len(rows) > 1 else 0.0
    return offsets


def calibration_figure(
    quality: RegressionQuality, predicted: Sequence[float] | np.ndarray, out: Path, unit: str = "score"
) -> Path:
    """Plot the mean true score by prediction, and a histogram of the predictions (N,)."""
    figure, (axes, below) = plt.subplots(2, 1, figsize=(6, 6), layout="constrained", sharex=True, height_ratios=[4, 1])
    x = np.array([b.predicted for b in quality.bins])  # (bins,)
    true = np.array([[b.true.low, b.true.value, b.true.high] for b in quality.bins])  # (bins, 3)
    ends = [min(x.min(), true.min()), max(x.max(), true.max())]
    axes.plot(ends, ends, color=BEFORE, linestyle="--", label="predicted = true")
    errors = np.diff(true, axis=1).T.clip(0)  # with few rows, a percentile interval may exclude the value
    label = f"bins of {bin_sizes(quality)} replies, 95 % intervals"
    axes.errorbar(x, true[:, 1], errors, fmt="o-", color=AFTER, ecolor=DARK, markersize=4, capsize=2, label=label)
    axes.set(ylabel=f"mean true {unit}")
    below.hist(np.asarray(predicted, float), bins=40, color=BEFORE)
    below.set(xlabel=f"predicted {unit}", ylabel="replies")
    return save_panels(figure, [axes, below], out)


def bin_sizes(quality: RegressionQuality) -> str:
    """Return the sizes of the bins: "20" or "18 to 22"."""
    counts = sorted({b.count for b in quality.bins})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def online_curves(metrics_file: Path, kept_iteration: int, out: Path) -> Path | None:
    """Plot the curves of a PPO or RLOO run from its ``metrics.jsonl``; None where it logged none of the metrics."""
    panels = panels_with_data(metrics_file, ONLINE_PANELS)
    return draw_panels(panels, kept_iteration, "iteration", "held-out, sampled", out) if panels else None


def preference_curves(metrics_file: Path, best_step: int, out: Path) -> Path:
    """Plot the curves of a DPO or KTO run from its ``metrics.jsonl``."""
    return draw_panels(panels_with_data(metrics_file, PREFERENCE_PANELS), best_step, "step", "held-out", out)


def panels_with_data(metrics_file: Path, panels: list[tuple[str, str, str]]) -> list[Panel]:
    """Return the panels whose metrics the run logged, with their values."""
    records = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    series = [(metric_series(records, t), metric_series(records, h), title) for t, h, title in panels]
    return [(training, held_out, title) for training, held_out, title in series if training or held_out]


def draw_panels(panels: list[Panel], best: int, unit: str, held_out_label: str, out: Path) -> Path:
    """Plot the panels in a grid; ``best`` is the step or iteration (``unit``) whose weights were kept."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (max(6, 3.6 * columns), 0.5 + 2.5 * rows)  # the legend alone takes nearly six inches
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", sharex=True, squeeze=False)
    for axes, (training, held_out, title) in zip(grid.flat, panels, strict=False):
        if training:
            steps, values = list(training), list(training.values())
            axes.plot(steps, values, color=BEFORE, alpha=0.45, linewidth=1)
            # centred: unlike a trailing average, it does not lag behind a rising curve
            smoothed = ndimage.gaussian_filter1d(np.array(values, float), max(len(values) / 40, 0.5), mode="nearest")
            axes.plot(steps, smoothed, color=DARK, label="training, smoothed")
        if held_out:
            axes.plot(list(held_out), list(held_out.values()), "o", color=AFTER, markersize=4, label=held_out_label)
        axes.axvline(best, color=AFTER, linewidth=0.8, linestyle=":", label=f"best: {unit} {best}")
        axes.set_title(title, loc="left", fontsize="medium")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:  # the lowest panel of each column
        axes.set_xlabel(unit)
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    return save_panels(figure, list(grid.flat[: len(panels)]), out)


def metric_series(records: list[dict[str, Any]], name: str) -> dict[int, float]:
    """Return the values by step, in order; of a step that a resumed run logged again, the later value."""
    return dict(sorted({r["step"]: r[name] for r in records if name in r}.items()))


def save_panels(figure: Any, panels: list[Any], out: Path) -> Path:
    """Save the figure with one legend above all panels, without duplicate entries."""
    entries: dict[str, Any] = {}
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), frameon=False, loc="outside upper center", ncols=len(entries))
    return save_figure(figure, out)
