"""Text statistics of replies, by the name of the feature set: ``dataset.text_stats``."""

from collections.abc import Sequence

import numpy as np

from manners.evaluation.metrics import assistant_style, human_likeness
from manners.evaluation.stats import Estimate


def count_text_stats(
    name: str, replies: Sequence[str], clusters: np.ndarray | None = None, complete: bool = False
) -> dict[str, Estimate]:
    """The mean of each feature over the replies, by its name in reports; ``complete`` adds the rarer features.

    Intervals are over the ``clusters`` (N,) of the replies' prompts.
    """
    if name == "none" or not replies:
        return {}
    if name == "human":
        rows = [human_likeness.turn_features(reply) for reply in replies]
        columns = {feature: np.array([row[feature] for row in rows]) for feature in human_likeness.FEATURES}  # (N,)
        return {
            feature: human_likeness.mean_estimate(values, feature, 0, clusters) for feature, values in columns.items()
        }
    stats = assistant_style.style_stats(replies, clusters=clusters)
    return stats if complete else {feature: stats[feature] for feature in assistant_style.CORE_FEATURES}


def distribution_distance(name: str, replies: Sequence[str], references: Sequence[str], seed: int) -> dict[str, float]:
    """Distance of each feature's distribution from that of the references, 0 to 1; empty unless ``name`` is "human"."""
    if name != "human" or not replies or not references:
        return {}
    return human_likeness.distances_from_people(replies, references, seed)
