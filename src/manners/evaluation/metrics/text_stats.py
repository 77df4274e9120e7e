"""What reports count in replies, by the name that ``dataset.text_stats`` gives it."""

from collections.abc import Sequence

import numpy as np

from manners.evaluation.metrics import assistant_style, human_likeness
from manners.evaluation.stats import Estimate


def text_stats(card: str, replies: Sequence[str], whole: bool = False) -> dict[str, Estimate]:
    """The mean of each feature over the replies, by its name in the report; ``whole`` has the rarer ones too."""
    if card == "none" or not replies:
        return {}
    if card == "human":
        rows = [human_likeness.turn_features(reply) for reply in replies]
        values = {name: np.array([row[name] for row in rows]) for name in human_likeness.FEATURES}
        return {
            name: human_likeness.mean_estimate(found, name in human_likeness.SIGNS, 0) for name, found in values.items()
        }
    counted = assistant_style.style_stats(replies)
    return counted if whole else {name: counted[name] for name in assistant_style.SHORT}


def distribution_distance(card: str, replies: Sequence[str], data: Sequence[str], seed: int) -> dict[str, float]:
    """How far the replies are from the data's own, by feature: 0 the same, 1 nothing in common. Of human turns only."""
    if card != "human" or not replies or not data:
        return {}
    return {line.name: line.distance for line in human_likeness.compare_with_people(replies, data, seed)}
