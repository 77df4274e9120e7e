"""The report cards of a few models side by side, as dots with their intervals: of ``manner`` or of ``human``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import PercentFormatter

from manners.errors import MannersError
from manners.evaluation.metrics.assistant_style import SHORT, UNITS
from manners.evaluation.reports.figures import AFTER, BEFORE, save_figure
from manners.evaluation.stats import Estimate

Cards = Mapping[str, Mapping[str, Estimate]]

STYLES = [(BEFORE, "o"), (AFTER, "D"), ("#e8590c", "s"), ("#5f3dc4", "^"), ("#2b8a3e", "v")]  # told apart in grey too
MOST = 11  # shares that are drawn


def draw_text_stats(cards: Cards, out: Path) -> Path:
    """``cards`` by the name of their model, the one to compare with first; 95 % intervals, as the cards have them.

    Shares stand on one axis, every number of another unit on its own, and all axes have their 0, so that a small
    difference looks small. After those of ``SHORT``, the shares by which the models differ most are drawn.
    """
    if not 1 <= len(cards) <= len(STYLES):
        raise MannersError(f"the card is drawn of 1 to {len(STYLES)} models, not of {len(cards)}: name fewer.")
    numbers = [[name] for name in feature_names(cards) if not is_share(cards, name)]
    panels = [names for names in (*numbers[:1], shares_to_draw(cards), *numbers[1:]) if names]
    heights = [len(names) * (0.16 + 0.085 * len(cards)) for names in panels]
    size = (7.5, sum(heights) + 0.55 * len(panels) + 0.4)
    figure = plt.figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), height_ratios=heights, squeeze=False)[:, 0]
    for axes, names in zip(grid, panels, strict=True):
        draw_rows(axes, cards, names)
        axes.axvline(0, color=BEFORE, linewidth=0.8, zorder=0)
        axes.set_xlabel(UNITS.get(names[0], ""))
        if is_share(cards, names[0]):
            axes.set_xlabel("share (intervals at 95 %)")
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=min(3, len(cards)))
    return save_figure(figure, out)


def feature_names(cards: Cards) -> list[str]:
    """Every feature that some card has, in the cards' order."""
    return list(dict.fromkeys(name for card in cards.values() for name in card))


def is_share(cards: Cards, name: str) -> bool:
    return name not in UNITS and all(card[name].high <= 1 for card in cards.values() if name in card)


def shares_to_draw(cards: Cards) -> list[str]:
    """The shares to draw: those of SHORT, and under them the others with the greatest difference between models."""
    known = [name for name in feature_names(cards) if is_share(cards, name)]
    short = [name for name in SHORT if name in known]
    return (short + sorted(set(known).difference(short), key=lambda name: (-has_difference(cards, name), name)))[:MOST]


def has_difference(cards: Cards, name: str) -> float:
    values = [card[name].value for card in cards.values() if name in card]
    return max(values) - min(values)


def draw_rows(axes: Any, cards: Cards, names: list[str]) -> None:
    """A line of the panel for each feature, and in it one dot under another for each model."""
    for (model, card), (color, marker), shift in zip(cards.items(), STYLES, offsets(len(cards)), strict=False):
        known = [(i + shift, card[name]) for i, name in enumerate(names) if name in card]
        at = np.array([place for place, _ in known])
        found = np.array([[e.low, e.value, e.high] for _, e in known]).reshape(-1, 3)
        errors = np.diff(found, axis=1).T.clip(0)  # of few replies, a percentile interval may leave its value outside
        axes.errorbar(
            found[:, 1], at, xerr=errors, fmt=marker, color=color, markersize=4.5, elinewidth=1.5, label=model
        )
    for line in range(1, len(names)):
        axes.axhline(line - 0.5, color="#dee2e6", linewidth=0.6)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def offsets(models: int) -> np.ndarray:
    """Where the models' dots stand in a line of height 1, from its middle: (models,)."""
    return (np.arange(models) - (models - 1) / 2) * 0.7 / models
