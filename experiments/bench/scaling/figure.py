"""Time and memory of a training step against model size, length and batch: results/scaling.json as a log-log figure.

python experiments/bench/scaling/figure.py
"""

import json
from pathlib import Path
from statistics import median

import matplotlib
from points import AXES, WIDTHS, name

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
COLOURS = {"ours": "#0b7285", "TRL": "#d9480f"}
MEASURES = {"CPU, s a step": lambda run: run["cpu_s"] / run["steps"], "memory, MB": lambda run: run["above_start_mb"]}


def parameters(width: int) -> float:
    """Millions: embeddings, and in each layer attention (keys and values of two heads of 64) and three matrices."""
    layer = 2 * width * width + 2 * width * 128 + 3 * width * (width * 11 // 4)
    return (3072 * width + WIDTHS[width] * layer) / 1e6


PLACES = {
    "model size": ("parameters, M", lambda point: parameters(point[0])),
    "sequence length": ("tokens a row", lambda point: point[1]),
    "batch": ("rows a step", lambda point: point[2]),
}


def draw(results: dict[str, dict], out: Path) -> None:
    figure, panels = plt.subplots(2, 3, figsize=(10, 6), layout="constrained", sharey="row")
    for column, (axis, points) in enumerate(AXES.items()):
        label, place = PLACES[axis]
        xs = [place(point) for point in points]
        for row, (measure, of) in enumerate(MEASURES.items()):
            panel = panels[row, column]
            for side, colour in COLOURS.items():
                runs = [[of(r) for r in results[name(p)]["runs"] if r["side"] == side] for p in points]
                panel.plot(xs, [median(those) for those in runs], "-o", color=colour, label=side, markersize=4)
                for x, those in zip(xs, runs, strict=True):
                    panel.plot([x] * 2, [min(those), max(those)], color=colour, alpha=0.35, linewidth=3)
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xticks(xs, [f"{x:.3g}" for x in xs])
            panel.minorticks_off()
            panel.spines[["top", "right"]].set_visible(False)
            if column == 0:
                panel.set_ylabel(f"{measure}" + (" above the libraries'" if row else ""))
            if row == 1:
                panel.set_xlabel(label)
    for row in panels:
        low, high = row[0].get_ylim()
        ticks = [t for k in range(-3, 5) for t in (10.0**k, 2 * 10.0**k, 5 * 10.0**k) if low <= t <= high]
        row[0].set_yticks(ticks, [f"{t:g}" for t in ticks])
    panels[0, 0].legend(frameon=False)
    figure.savefig(out, dpi=130)
    plt.close(figure)


def main() -> None:
    results = json.loads((HERE.parent / "results" / "scaling.json").read_text(encoding="utf-8"))
    draw(results, HERE / "scaling.png")


if __name__ == "__main__":
    main()
