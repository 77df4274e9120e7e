"""Reward and style by KL: python experiments/strictbot/overoptimization.py OUT.png EVALUATION [...] -- PPO_RUN [...]

An EVALUATION is a folder of evaluate.py: of one with best_of=N the curve of best of n is drawn, and of each PPO_RUN the
reward and the style accuracy of its greedy replies, as one of the EVALUATIONs has them, at the KL of its report. As the
reward rises with KL, a style accuracy that does not follow is over-optimization (Gao et al. 2023, arXiv 2210.10760).
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KL = "KL of sampled replies to the reference, nats per reply"
BEST, PPO = "#0b7285", "#e8590c"
MEASURES = {"reward": "reward model", "style_accuracy": "style accuracy"}  # of best of n, and as the comparison has it

Point = tuple[str, float, dict[str, float]]  # its name, KL and estimate


def main(out: Path, evaluations: list[Path], runs: list[Path]) -> None:
    results: dict[str, Any] = {}
    for folder in evaluations:
        results |= json.loads((folder / "numbers.json").read_text())
    curve = next(result["best_of_n"] for result in results.values() if result["best_of_n"])
    kls = {run.name: json.loads((run / "after.json").read_text())["extra_metrics"][KL]["value"] for run in runs}
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, (key, measure) in zip(panels, MEASURES.items(), strict=True):
        draw(axes, [(f"best of {b['n']}", b["kl"], b[key]) for b in curve], measure, "o-", BEST)
        draw(axes, [(run, kl, results[run]["metrics"][measure]) for run, kl in kls.items()], measure, "s", PPO)
        axes.set(xlabel="KL to the SFT policy, nats a reply", title=measure)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].plot([], [], "o-", color=BEST, label="best of 1, 2, 4, ... sampled")
    panels[0].plot([], [], "s", color=PPO, label="PPO, greedy")
    panels[0].legend(frameon=False)
    figure.savefig(out, dpi=130)


def draw(axes: Any, points: list[Point], measure: str, style: str, color: str) -> None:
    """Draw the points with their intervals, and print them as rows of a table."""
    values = [e["value"] for _, _, e in points]
    errors = [[e["value"] - e["low"] for *_, e in points], [e["high"] - e["value"] for *_, e in points]]
    axes.errorbar([kl for _, kl, _ in points], values, errors, fmt=style, color=color, capsize=2)
    for name, kl, e in points:
        print(f"| {measure} | {name} | {kl:.2f} | {e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}] |")


if __name__ == "__main__":
    split = sys.argv.index("--")
    main(Path(sys.argv[1]), [Path(a) for a in sys.argv[2:split]], [Path(a) for a in sys.argv[split + 1 :]])
