"""Which rows go through a model together."""

from collections.abc import Sequence

SPREAD = 2.0  # the longest row of a batch over its shortest: padding then stays below half


def by_length(lengths: Sequence[int], slots: int) -> list[list[int]]:
    """Row numbers in batches of like length, each of at most ``slots`` padded tokens (one row at least)."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda r: lengths[r]):
        last = batches[-1] if batches else []
        fits = last and (len(last) + 1) * lengths[row] <= slots and lengths[row] <= SPREAD * lengths[last[0]]
        batches = batches if fits else [*batches, []]
        batches[-1].append(row)
    return batches
