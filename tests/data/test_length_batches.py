"""Batches by length: each row once, similar lengths, never too many padded tokens."""

import random

from manners.data.batching import MAX_LENGTH_RATIO, length_batches


def test_length_batches_small_example():
    assert length_batches([4, 2, 3, 9, 2], max_tokens=8) == [[1, 4], [2, 0], [3]]
    assert length_batches([], 10) == []
    assert length_batches([50], 10) == [[0]]  # one row at least


def test_length_batches_keep_to_max_tokens_and_length_ratio():
    rng = random.Random(0)
    lengths = [rng.randint(1, 60) for _ in range(200)]
    batches = length_batches(lengths, 120)
    assert sorted(row for batch in batches for row in batch) == list(range(200))
    for batch in batches:
        longest, shortest = max(lengths[r] for r in batch), min(lengths[r] for r in batch)
        assert len(batch) == 1 or len(batch) * longest <= 120
        assert longest <= MAX_LENGTH_RATIO * shortest
