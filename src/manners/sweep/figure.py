"""A sweep as a picture: a line where one number varies, parallel coordinates where more does."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt

from manners.sweep.rows import ConfigurationRow

INK, FAINT, BEST = "#0b7285", "#9aa5b1", "#d9480f"


def draw_sweep(rows: Sequence[ConfigurationRow], metric: str, direction: str, out: Path) -> list[Path]:
    """The file that was written; none where there is nothing to compare. The best row comes first."""
    rows = [row for row in rows if row.metrics]
    keys = [k for k in dict.fromkeys(k for row in rows for k in row.choice) if len({r.choice.get(k) for r in rows}) > 1]
    if len(rows) < 2 or not keys:
        return []
    numbers = len(keys) == 1 and all(as_number(row.choice.get(keys[0])) is not None for row in rows)
    better = "less" if direction == "minimize" else "more"
    figure, axes = plt.subplots(
        figsize=(1.6 + 1.9 * (len(keys) + 1), 4) if not numbers else (7, 4), layout="constrained"
    )
    if numbers:
        draw_line(axes, rows, keys[0])
        axes.set_ylabel(f"{metric} ({better} is better)")
    else:
        draw_parallel(axes, rows, keys, f"{metric}\n({better} is better)")
    figure.savefig(out, dpi=130)
    plt.close(figure)
    return [out]


def draw_line(axes: plt.Axes, rows: Sequence[ConfigurationRow], key: str) -> None:
    """Each seed a dot, their mean a line."""
    points = sorted((as_number(row.choice[key]) or 0.0, row) for row in rows)  # type: ignore[type-var]
    xs = [x for x, _ in points]
    for x, row in points:
        axes.plot([x] * len(row.metrics), row.metrics, "o", color=FAINT, markersize=5, zorder=1)
    axes.plot(xs, [row.mean for _, row in points], "-o", color=INK, markersize=4)
    best = rows[0]
    axes.plot([as_number(best.choice[key]) or 0.0], [best.mean], "o", color=BEST, markersize=9, label="best", zorder=3)
    if xs[0] > 0 and xs[-1] / xs[0] >= 20:
        axes.set_xscale("log")
    axes.set_xlabel(key)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def draw_parallel(axes: plt.Axes, rows: Sequence[ConfigurationRow], keys: list[str], metric: str) -> None:
    """An upright axis for each key and one for the metric; a line for each configuration."""
    columns = [axis_column([row.choice.get(k, "–") for row in rows]) for k in keys]
    columns.append(axis_column([f"{row.mean:.6g}" for row in rows]))
    for i in range(len(rows) - 1, -1, -1):
        heights = [places[i] for places, _ in columns]
        style = {"color": BEST, "linewidth": 2.2} if i == 0 else {"color": INK, "alpha": 0.35, "linewidth": 1.1}
        axes.plot(range(len(columns)), heights, **style, label="best" if i == 0 else None)  # type: ignore[arg-type]
    for x, (_, ticks) in enumerate(columns):
        axes.axvline(x, color=FAINT, linewidth=0.8)
        for height, text in ticks:
            axes.annotate(text, (x, height), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center")
    axes.set_xticks(range(len(columns)), [*keys, metric], fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(columns) - 0.6)
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, loc="upper left", fontsize=8)


def axis_column(values: Sequence[str]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights from 0 to 1 of the values on their axis, and its labels: numbers to scale, words evenly."""
    numbers = [as_number(v) for v in values]
    if all(n is not None for n in numbers):
        low, high = min(numbers), max(numbers)  # type: ignore[type-var]
        log = low > 0 and high / low >= 20  # type: ignore[operator]
        scale = (lambda v: math.log(v)) if log else (lambda v: v)
        span = scale(high) - scale(low) or 1.0
        heights = [(scale(n) - scale(low)) / span for n in numbers]
        return heights, [(0.0, f"{low:.4g}"), *([(1.0, f"{high:.4g}")] if high != low else [])]
    words = sorted(set(values))
    place = {w: i / max(1, len(words) - 1) for i, w in enumerate(words)}
    return [place[v] for v in values], [(place[w], w) for w in words]


def as_number(text: str | None) -> float | None:
    try:
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
