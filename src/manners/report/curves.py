"""Learning curves as shapes, which the page's template draws as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 42
STYLES = 12  # six colours, each as a full and as a broken line; further configurations share a grey one

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    label: str
    style: int
    seeds: list[str]  # SVG's "x,y x,y"
    mean: str
    dots: list[tuple[float, float]]  # of the mean, which one point alone would not show


@dataclass(frozen=True)
class Chart:
    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def learning_chart(title: str, series: dict[str, list[Points]]) -> Chart | None:
    """The curves of each configuration's seeds, by its label. None where none has two points."""
    if not any(len(points) > 1 for seeds in series.values() for points in seeds):
        return None
    points = [p for seeds in series.values() for points in seeds for p in points]
    xs, ys = ([p[i] for p in points] for i in (0, 1))
    x_marks, y_marks = ticks(min(0, *xs), max(xs), whole=True), ticks(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - x_marks[0]) / (x_marks[-1] - x_marks[0])
        up = (y - y_marks[0]) / (y_marks[-1] - y_marks[0])
        return (
            round(LEFT + right * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    def path(points: Points) -> str:
        return " ".join(f"{x},{y}" for x, y in (place(*p) for p in points))

    lines = []
    for i, (label, seeds) in enumerate(series.items()):
        middle = mean_curve(seeds)
        dots = [place(*p) for p in middle] if len(middle) <= 25 else []
        thin = [path(points) for points in seeds] if len(seeds) > 1 else []
        lines.append(Line(label, min(i, STYLES), thin, path(middle), dots))
    return Chart(
        title,
        lines,
        [(place(x, y_marks[0])[0], f"{x:g}") for x in x_marks],
        [(place(x_marks[0], y)[1], f"{y:g}") for y in y_marks],
    )


def mean_curve(seeds: Sequence[Points]) -> Points:
    """At the steps that every seed has, so that a seed which ended early does not bend it."""
    tables = [dict(points) for points in seeds if points]
    steps = set.intersection(*(set(t) for t in tables)) if tables else set()
    return [(x, math.fsum(t[x] for t in tables) / len(tables)) for x in sorted(steps)]


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, at least two of them."""
    if low == high:
        low, high = low - abs(low) / 10 - 1e-6, high + abs(high) / 10 + 1e-6
    return [round(float(t), 12) for t in MaxNLocator(6, integer=whole, min_n_ticks=2).tick_values(low, high)]
