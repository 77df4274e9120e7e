"""Figures of reward models, of the runs that chase their scores, and of DPO, whose policy is one."""

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
Panel = tuple[dict[int, float], dict[int, float], str]  # value by step in training, the same held out, the axis
FEW = 12  # different true scores, up to which each is drawn as a strip of its own

# of a run: the metric in training, the one on held-out prompts, and the axis
PANELS = [
    ("objective/scores", "eval/scores", "reward a reply"),
    ("objective/kl", "eval/kl", "KL to the start (nats a reply)"),
    ("objective/length", "eval/length", "length (tokens a reply)"),
    ("policy/entropy_avg", "eval/entropy", "entropy (nats a token)"),
    ("policy/clipfrac_avg", "", "clipped share of the tokens"),
    ("objective/distinct_2", "eval/distinct_2", "distinct-2 (share of word pairs)"),
]
PREFERENCES = [
    ("train/loss", "eval/loss", "loss (nats a pair)"),
    ("train/rewards/accuracies", "eval/rewards/accuracies", "share of pairs put in order"),
    ("train/rewards/margins", "eval/rewards/margins", "margin (nats, times β)"),
]


def score_scatter(
    predicted: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray, out: Path, unit: str = "score"
) -> Path:
    """Predicted against true scores, (N,) each, in the dataset's ``unit``; few different ones as strips of points."""
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    levels = np.unique(true)
    gap = np.diff(levels).min() if len(levels) > 1 else 1.0
    strips = len(levels) <= FEW and gap >= 0.08 * max(np.ptp(levels), gap)
    at = true + 0.42 * gap * strip_offsets(predicted, true) if strips else true
    axes.plot([levels[0], levels[-1]], [levels[0], levels[-1]], color=BEFORE, linestyle="--", label="predicted = true")
    axes.scatter(at, predicted, s=9, color=AFTER, alpha=min(0.8, max(0.25, 200 / len(true))), linewidths=0)
    axes.set(xlabel=f"true {unit}", ylabel=f"predicted {unit}")
    if strips:
        parts = [predicted[true == level] for level in levels]
        quartiles = np.array([np.percentile(p, [25, 50, 75]) for p in parts])  # (levels, 3)
        axes.vlines(levels, quartiles[:, 0], quartiles[:, 2], color=DARK, linewidth=2)
        axes.plot(levels, quartiles[:, 1], "o", color="white", markeredgecolor=DARK, label="median and quartiles")
        axes.set_xticks(levels, [f"{level:g}\n({len(p)})" for level, p in zip(levels, parts, strict=True)])
        axes.set_xlabel(f"true {unit} (number of replies)")
    return save_panels(figure, [axes], out)


def strip_offsets(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Sideways places from -1 to 1, (N,): points spread the further, the more of them are there, as in a violin."""
    sideways = np.zeros(len(true))
    for level in np.unique(true):
        rows = np.flatnonzero(true == level)
        values = predicted[rows]
        dense = stats.gaussian_kde(values)(values) if len(rows) > 2 and np.ptp(values) > 0 else np.ones(len(rows))
        place = (np.random.default_rng(0).permutation(len(rows)) + 0.5) / len(rows) * 2 - 1
        sideways[rows] = place * dense / dense.max() if len(rows) > 1 else 0.0
    return sideways


def calibration_figure(
    quality: RegressionQuality, predicted: Sequence[float] | np.ndarray, out: Path, unit: str = "score"
) -> Path:
    """Mean true score of replies with like predictions, and beneath it how often each prediction comes."""
    figure, (axes, below) = plt.subplots(2, 1, figsize=(6, 6), layout="constrained", sharex=True, height_ratios=[4, 1])
    at = np.array([b.predicted for b in quality.bins])
    true = np.array([[b.true.low, b.true.value, b.true.high] for b in quality.bins])  # (bins, 3)
    ends = [min(at.min(), true.min()), max(at.max(), true.max())]
    axes.plot(ends, ends, color=BEFORE, linestyle="--", label="predicted = true")
    errors = np.diff(true, axis=1).T.clip(0)  # of few rows, a percentile interval may leave its value outside
    label = f"bins of {error_caption(quality)} replies, 95 % intervals"
    axes.errorbar(at, true[:, 1], errors, fmt="o-", color=AFTER, ecolor=DARK, markersize=4, capsize=2, label=label)
    axes.set(ylabel=f"mean true {unit}")
    below.hist(np.asarray(predicted, float), bins=40, color=BEFORE)
    below.set(xlabel=f"predicted {unit}", ylabel="replies")
    return save_panels(figure, [axes, below], out)


def error_caption(quality: RegressionQuality) -> str:
    counts = sorted({b.count for b in quality.bins})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def online_curves(metrics_file: Path, best_iteration: int, out: Path) -> Path | None:
    """A panel for each thing to watch in a PPO run, from its ``metrics.jsonl``; None where it logged none of them."""
    panels = panels_with_data(metrics_file, PANELS)
    return draw_panels(panels, best_iteration, "iteration", "held out, greedy", out) if panels else None


def preference_curves(metrics_file: Path, best_step: int, out: Path) -> Path:
    """The same of a DPO run."""
    return draw_panels(panels_with_data(metrics_file, PREFERENCES), best_step, "step", "held out", out)


def panels_with_data(metrics_file: Path, panels: list[tuple[str, str, str]]) -> list[Panel]:
    """Those of the ``panels`` of which the run told something."""
    records = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    found = [(metric_series(records, t), metric_series(records, h), label) for t, h, label in panels]
    return [(t, h, label) for t, h, label in found if t or h]


def draw_panels(panels: list[Panel], best: int, unit: str, examined: str, out: Path) -> Path:
    """``best`` is the ``unit``, an iteration or a step, whose weights were kept; ``examined`` are held-out points."""
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    size = (max(6, 3.6 * columns), 0.5 + 2.5 * lines)  # the legend alone takes nearly six inches
    figure, grid = plt.subplots(lines, columns, figsize=size, layout="constrained", sharex=True, squeeze=False)
    for axes, (training, held_out, label) in zip(grid.flat, panels, strict=False):
        if training:
            steps, values = list(training), list(training.values())
            axes.plot(steps, values, color=BEFORE, alpha=0.45, linewidth=1)
            # centred, unlike a moving average of what came before: a curve that rises is not drawn beneath itself
            smoothed = ndimage.gaussian_filter1d(np.array(values, float), max(len(values) / 40, 0.5), mode="nearest")
            axes.plot(steps, smoothed, color=DARK, label="training, smoothed")
        if held_out:
            axes.plot(list(held_out), list(held_out.values()), "o", color=AFTER, markersize=4, label=examined)
        axes.axvline(best, color=AFTER, linewidth=0.8, linestyle=":", label=f"kept: {unit} {best}")
        axes.set_title(label, loc="left", fontsize="medium")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:  # the lowest of each column
        axes.set_xlabel(unit)
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    return save_panels(figure, list(grid.flat[: len(panels)]), out)


def metric_series(records: list[dict[str, Any]], name: str) -> dict[int, float]:
    """Value by step, in order; of a step that a resumed run logged again, the later."""
    return dict(sorted({r["step"]: r[name] for r in records if name in r}.items()))


def save_panels(figure: Any, panels: list[Any], out: Path) -> Path:
    """Save it, with one legend above all panels, in which nothing comes twice."""
    entries: dict[str, Any] = {}
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), frameon=False, loc="outside upper center", ncols=len(entries))
    return save_figure(figure, out)
