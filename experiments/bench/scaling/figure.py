"""Log-log figure of time and memory against model size, sequence length, batch size and number of prompts.

Reads results/scaling.json (a training step) and results/growth.json (a PPO iteration).

python experiments/bench/scaling/figure.py
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib
from points import AXES, PROMPT_COUNTS, WIDTHS, case_name, ppo_case_name

matplotlib.use("Agg")  # no display is needed
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
COLOURS = {"ours": "#0b7285", "TRL": "#d9480f"}


def parameters(width: int) -> float:
    """Parameters in millions: embeddings; per layer attention (two key-value heads of 64) and three MLP matrices."""
    layer = 2 * width * width + 2 * width * 128 + 3 * width * (width * 11 // 4)
    return (3072 * width + WIDTHS[width] * layer) / 1e6


@dataclass(frozen=True)
class Column:
    """A column of the figure: one axis with its points, and how time and memory are read from a run."""

    label: str
    values: list[float]
    cases: list[str]
    line: str
    measures: tuple[Callable[[dict], float], Callable[[dict], float]]


STEP = (lambda run: run["cpu_s"] / run["steps"], lambda run: run["above_start_mb"])
ITERATION = (lambda run: median(run["cpu_s"][1:]), lambda run: run["peak_rss_mb"] - run["rss_start_mb"])
AXIS_VALUES: dict[str, tuple[str, Callable[[tuple[int, int, int]], float]]] = {
    "model size": ("parameters, M", lambda point: parameters(point[0])),
    "sequence length": ("tokens per row", lambda point: point[1]),
    "batch": ("rows per step", lambda point: point[2]),
}
COLUMNS = [
    Column(AXIS_VALUES[axis][0], [*map(AXIS_VALUES[axis][1], points)], [*map(case_name, points)], "scaling", STEP)
    for axis, points in AXES.items()
]
COLUMNS += [
    Column("prompts per PPO iteration", [*PROMPT_COUNTS], [*map(ppo_case_name, PROMPT_COUNTS)], "growth", ITERATION)
]


def draw(results: dict[str, dict], out: Path) -> None:
    columns = [column for column in COLUMNS if column.line in results]
    figure, panels = plt.subplots(
        2, len(columns), figsize=(3.2 * len(columns), 6), layout="constrained", sharey="row", squeeze=False
    )
    for at, column in enumerate(columns):
        for row, measure in enumerate(column.measures):
            panel = panels[row, at]
            for side, colour in COLOURS.items():
                case_runs = [results[column.line][case]["runs"] for case in column.cases]
                measured = [[measure(run) for run in runs if run["side"] == side] for runs in case_runs]
                panel.plot(
                    column.values, [median(values) for values in measured], "-o", color=colour, label=side, markersize=4
                )
                for x, values in zip(column.values, measured, strict=True):
                    panel.plot([x] * 2, [min(values), max(values)], color=colour, alpha=0.35, linewidth=3)
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xticks(column.values, [f"{x:.3g}" for x in column.values])
            panel.minorticks_off()
            panel.spines[["top", "right"]].set_visible(False)
            if row == 1:
                panel.set_xlabel(column.label)
    panels[0, 0].set_ylabel("CPU, s")
    panels[1, 0].set_ylabel("memory, MB above startup")
    for row in panels:
        low, high = row[0].get_ylim()
        ticks = [t for k in range(-3, 5) for t in (10.0**k, 2 * 10.0**k, 5 * 10.0**k) if low <= t <= high]
        row[0].set_yticks(ticks, [f"{t:g}" for t in ticks])
    panels[0, 0].legend(frameon=False)
    figure.savefig(out, dpi=130)
    plt.close(figure)


def main() -> None:
    files = [HERE.parent / "results" / f"{line}.json" for line in ("scaling", "growth")]
    results = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()}
    if not results:
        raise SystemExit('nothing has been measured yet: make bench ARGS="scaling growth --all"')
    draw(results, HERE / "scaling.png")


if __name__ == "__main__":
    main()
