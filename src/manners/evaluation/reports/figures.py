"""Figures of SFT runs: the learning curve, and style accuracy before and after."""

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt

from manners.evaluation.evaluate import EvalResult

BEFORE, AFTER = "#9aa5b1", "#0b7285"


def learning_curve(metrics_file: Path, best_step: int, out: Path) -> Path:
    """Plot training and held-out loss by step, from the run's ``metrics.jsonl``."""
    records = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    training = sorted((r["step"], r["train/loss"]) for r in records if "train/loss" in r)
    held_out = sorted((r["step"], r["eval/loss"]) for r in records if "eval/loss" in r)
    if training:  # a run shorter than method.logging_steps logs none
        steps, losses = zip(*training, strict=True)
        axes.plot(steps, losses, color=BEFORE, alpha=0.35, linewidth=1)
        axes.plot(steps, moving_average(losses), color="#495057", label="training, smoothed")
    axes.plot(*zip(*held_out, strict=True), "o-", color=AFTER, label="held-out", markersize=4)
    axes.axvline(best_step, color=AFTER, linewidth=0.8, linestyle=":", label=f"best: step {best_step}")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return save_figure(figure, out)


def save_figure(figure: Any, out: Path) -> Path:
    """Save the figure as PNG. ``figure.savefig`` would draw everything twice."""
    figure.set_dpi(130)
    figure.canvas.print_png(out)
    plt.close(figure)
    return out


def moving_average(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Return the exponential moving average, which starts at the first value."""
    return list(accumulate(values, lambda mean, value: weight * mean + (1 - weight) * value))


def accuracy_figure(before: EvalResult, after: EvalResult, out: Path) -> Path:
    """Plot style accuracy by category, before and after, with 95 % intervals."""
    names = ["all", *before.style_accuracy_by_group]
    accuracies = [(m.style_accuracy, *m.style_accuracy_by_group.values()) for m in (before, after)]
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.55 * len(names)), layout="constrained")
    for offset, estimates, label, color in (
        (-0.2, accuracies[0], "before", BEFORE),
        (0.2, accuracies[1], "after", AFTER),
    ):
        known = [e for e in estimates if e]
        positions = [i + offset for i in range(len(known))]
        errors = [[e.value - e.low for e in known], [e.high - e.value for e in known]]
        axes.barh(positions, [e.value for e in known], 0.36, xerr=errors, color=color, label=label, ecolor="#495057")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="style accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return save_figure(figure, out)
