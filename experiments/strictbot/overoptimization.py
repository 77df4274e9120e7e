"""Does another measure follow the reward model? python experiments/strictbot/overoptimization.py OUT.png BEST_OF PPO …

BEST_OF is the folder of an evaluation of the SFT run with ``best_of``, each PPO one of PPO runs, at several prices of
KL, sampled at PPO's temperature; all with ``reward_from``. Prints a table, and draws both measures against the KL to
the SFT policy (Gao et al. 2023, arXiv 2210.10760, figure 1); its axis is scaled by the square root, as there.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import yaml

from manners.evaluation.evaluate import KL_NAME

Point = tuple[str, float, dict[str, float], dict[str, float]]  # label, KL in nats a reply, the two measures
MEASURES = ("reward model", "style accuracy, by rules")


def main(out: Path, best_of: Path, *ppo: Path) -> None:
    points = [point for folder in ppo for point in ppo_points(folder)]
    curves = {"best of n": best_of_points(best_of), "PPO": sorted(points, key=lambda point: point[1])}
    for name, points in curves.items():
        for label, kl, *measures in points:
            values = (f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]" for m in measures)
            print(" | ".join([f"{name}, {label}".replace("\n", ", "), f"KL {kl:.2f}", *values]))
    draw(curves, out)


def best_of_points(folder: Path) -> list[Point]:
    """The best of 1, 2, 4, ... replies of the one model of an evaluation."""
    curve = next(of for of in (numbers["best_of_n"] for numbers in numbers_of(folder).values()) if of)
    return [(f"n = {best['n']}", best["kl"], best["reward"], best["style_accuracy"]) for best in curve]


def ppo_points(folder: Path) -> list[Point]:
    """The PPO runs of an evaluation; their KL is of their own report."""
    points = []
    for name, numbers in numbers_of(folder).items():
        run = folder.parent.parent / "runs" / name
        method = yaml.safe_load((run / "config.yaml").read_text())["method"]
        kl = json.loads((run / "after.json").read_text())["extra_metrics"][KL_NAME]["value"]
        reward, style = (numbers["metrics"][measure] for measure in ("reward model", "style accuracy"))
        points.append((f"β = {method['kl_coef']:g}\n{method['total_episodes']} replies", kl, reward, style))
    return points


def numbers_of(folder: Path) -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((folder / "numbers.json").read_text())
    return numbers


def draw(curves: dict[str, list[Point]], out: Path) -> None:
    widest = 1.6 * max(point[1] for points in curves.values() for point in points)  # with room for the labels
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for i, (axes, title) in enumerate(zip(panels, MEASURES, strict=True)):
        for (name, points), marker in zip(curves.items(), "os", strict=True):
            kl, estimates = [point[1] for point in points], [point[2 + i] for point in points]
            values = np.array([[e["low"], e["value"], e["high"]] for e in estimates])
            spread = np.abs(values[:, [0, 2]] - values[:, [1]]).T
            axes.errorbar(kl, values[:, 1], spread, fmt=marker, capsize=2, label=name, alpha=0.8)
            for point, value in zip(points, values[:, 1], strict=True):
                axes.annotate(point[0], (point[1], value), (4, 3), textcoords="offset points", fontsize=7)
        axes.set_xscale("function", functions=(np.sqrt, np.square))
        axes.set(xlabel="KL to the SFT policy, nats a reply", title=title, xlim=(0, widest))
    panels[0].legend()
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
