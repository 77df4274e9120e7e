"""Learning curves as coordinates, which the page's template draws as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 42  # margins
STYLES = 12  # six colours, each as a solid and as a dashed line; further configurations share a grey one
MAX_DOTS = 25  # a longer curve is drawn without dots

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    label: str
    style: int
    seeds: list[str]  # a polyline per seed, as SVG's "x,y x,y"; empty if there is only one seed
    mean: str
    dots: list[tuple[float, float]]  # of the mean: a polyline of one point would be invisible


@dataclass(frozen=True)
class Chart:
    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def learning_chart(title: str, series: dict[str, list[Points]]) -> Chart | None:
    """A chart of the seeds' curves of each configuration label, or None if no curve has two points."""
    if not any(len(points) > 1 for seeds in series.values() for points in seeds):
        return None
    points = [p for seeds in series.values() for points in seeds for p in points]
    xs, ys = ([p[i] for p in points] for i in (0, 1))
    x_values, y_values = ticks(min(0, *xs), max(xs), integer=True), ticks(min(ys), max(ys))

    def to_pixels(x: float, y: float) -> tuple[float, float]:
        right = (x - x_values[0]) / (x_values[-1] - x_values[0])
        up = (y - y_values[0]) / (y_values[-1] - y_values[0])
        return (
            round(LEFT + right * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    def polyline(points: Points) -> str:
        return " ".join(f"{x},{y}" for x, y in (to_pixels(*p) for p in points))

    lines = []
    for i, (label, seeds) in enumerate(series.items()):
        mean = mean_curve(seeds)
        dots = [to_pixels(*p) for p in mean] if len(mean) <= MAX_DOTS else []
        seed_lines = [polyline(points) for points in seeds] if len(seeds) > 1 else []
        lines.append(Line(label, min(i, STYLES), seed_lines, polyline(mean), dots))
    return Chart(
        title,
        lines,
        [(to_pixels(x, y_values[0])[0], f"{x:g}") for x in x_values],
        [(to_pixels(x_values[0], y)[1], f"{y:g}") for y in y_values],
    )


def mean_curve(seeds: Sequence[Points]) -> Points:
    """The mean at the steps that all seeds have, so that a seed that ended early does not shift it."""
    curves = [dict(points) for points in seeds if points]
    steps = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return [(x, math.fsum(curve[x] for curve in curves) / len(curves)) for x in sorted(steps)]


def ticks(low: float, high: float, integer: bool = False) -> list[float]:
    """At least two round numbers, from at most ``low`` to at least ``high``."""
    if low == high:
        low, high = low - abs(low) / 10 - 1e-6, high + abs(high) / 10 + 1e-6
    return [round(float(t), 12) for t in MaxNLocator(6, integer=integer, min_n_ticks=2).tick_values(low, high)]
