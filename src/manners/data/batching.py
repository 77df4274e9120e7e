"""Examples → batches: by length, in a reproducible order that a restart continues, padded or packed."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from manners.data.tokenize import IGNORE_INDEX, TokenizedExample

Batch = dict[str, torch.Tensor]
MAX_LENGTH_RATIO = 2.0  # the longest row of a batch over its shortest: padding then stays below half
SORT_WINDOW = 50  # batches whose examples are sorted together: rows of like length meet, and the order stays random


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row indices in batches of similar length, each of at most ``max_tokens`` padded tokens, but one row at least."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda r: lengths[r]):
        length, last = lengths[row], batches[-1] if batches else []
        joins = last and (len(last) + 1) * length <= max_tokens and length <= MAX_LENGTH_RATIO * lengths[last[0]]
        batches = batches if joins else [*batches, []]
        batches[-1].append(row)
    return batches


class ResumableBatches:
    """All microbatches of a run, epoch after epoch, as one sequence: to resume takes one position.

    An optimizer step is made of ``accumulate`` batches of ``batch_size`` rows on each of ``num_processes`` devices.
    Where memory is short, each batch is split into microbatches of at most ``microbatch_size`` rows per device, and the
    gradient is accumulated over all of them: the optimizer steps stay the same. Each epoch has its own order, and an
    optimizer step may span two epochs. An example has its ``length`` in tokens and the ``num_targets`` that carry loss.
    """

    def __init__(
        self,
        examples: list[Any],
        batch_size: int,
        collate: Callable[[list[Any]], Batch],
        steps: int,
        accumulate: int,
        seed: int,
        group_by_length: bool,
        rank: int = 0,
        num_processes: int = 1,
        microbatch_size: int | None = None,
    ):
        self.examples, self.batch_size, self.collate = examples, batch_size, collate
        self.rank, self.num_processes, self.accumulate_batches = rank, num_processes, accumulate
        global_size = batch_size * num_processes
        epochs = -(-steps * accumulate // -(-len(examples) // global_size))
        batches = [
            batch
            for epoch in range(epochs)
            for batch in epoch_batches(examples, global_size, f"{seed}/{epoch}", group_by_length)
        ]
        self.batches = batches[: steps * accumulate]
        self.position = 0  # microbatches that were given out
        self.set_microbatch_size(microbatch_size or batch_size)

    def set_microbatch_size(self, rows: int) -> None:
        """Split each batch into microbatches of at most ``rows`` rows per device, as even as can be."""
        self.microbatch_size = rows
        self.num_microbatches = -(-self.batch_size // rows)

    @property
    def accumulate(self) -> int:
        """Microbatches in an optimizer step."""
        return self.accumulate_batches * self.num_microbatches

    def __len__(self) -> int:
        return len(self.batches) * self.num_microbatches

    def step(self, number: int) -> list[list[int]]:
        """The batches of optimizer step ``number``, as lists of example indices."""
        return self.batches[number * self.accumulate_batches : (number + 1) * self.accumulate_batches]

    def __iter__(self) -> Iterator[Batch]:
        while self.position < len(self):
            step = self.step(self.position // self.accumulate)
            batch, part = divmod(self.position, self.num_microbatches)
            rows = [self.examples[i] for i in self.batches[batch]]
            microbatch = local_batch(rows, self.collate, self.rank, self.num_processes, part, self.num_microbatches)
            # The loss of an optimizer step is a mean over all its targets, however they are spread over microbatches
            # and devices.
            num_targets = sum(self.examples[i].num_targets for indices in step for i in indices)
            microbatch["step_num_targets"] = torch.tensor(num_targets)
            self.position += 1
            yield microbatch

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs to know."""
        return {"position": self.position, "num_microbatches": self.num_microbatches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of ``state``, which between two batches may be that of another microbatch size."""
        self.position = state["position"] * self.num_microbatches // state["num_microbatches"]


def validation_batches(
    examples: list[Any],
    batch_size: int,
    collate: Callable[[list[Any]], Batch],
    rank: int = 0,
    num_processes: int = 1,
) -> list[Batch]:
    """Every example once, sorted by length, in batches of ``batch_size`` rows per device."""
    by_length, size = sorted(examples, key=lambda e: e.length), batch_size * num_processes
    return [local_batch(by_length[i : i + size], collate, rank, num_processes) for i in range(0, len(by_length), size)]


def local_batch(
    rows: list[Any],
    collate: Callable[[list[Any]], Batch],
    rank: int,
    num_processes: int,
    part: int = 0,
    num_parts: int = 1,
) -> Batch:
    """Microbatch ``part`` of the rows of a batch that belong to process ``rank``.

    A process takes every ``num_processes``-th row, so that lengths are spread evenly. Where it has no row left, it gets
    another's as a filler (``is_filler``), which counts for nothing: every process must compute at the same time, since
    gradients and sharded weights are exchanged on the way.
    """
    own = rows[rank::num_processes]
    size = -(-len(own) // num_parts)
    own = own[part * size : (part + 1) * size]
    batch = collate(own or rows[:1])
    return batch if own else batch | {"is_filler": torch.tensor(True), "tokens": torch.tensor(0)}


def epoch_batches(examples: list[Any], batch_size: int, seed: str, group_by_length: bool) -> list[list[int]]:
    """The batches of one epoch as lists of example indices."""
    rng = random.Random(seed)
    indices = list(range(len(examples)))
    rng.shuffle(indices)
    window = SORT_WINDOW * batch_size if group_by_length else batch_size
    batches = []
    for start in range(0, len(indices), window):
        chunk = indices[start : start + window]
        if group_by_length:
            chunk.sort(key=lambda i: examples[i].length)
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    if group_by_length:
        rng.shuffle(batches)
    return batches


def collate(examples: list[TokenizedExample], pad: int) -> Batch:
    """Right-padded ``input_ids``, ``labels`` and, where packed, ``position_ids`` (B, T); ``row_lengths`` (B,)."""
    length = max(len(e.input_ids) for e in examples)
    ids = torch.full((len(examples), length), pad)
    labels = torch.full((len(examples), length), IGNORE_INDEX)
    positions = torch.arange(length).repeat(len(examples), 1)
    for row, example in enumerate(examples):
        n = len(example.input_ids)
        ids[row, :n] = torch.tensor(example.input_ids)
        labels[row, :n] = torch.tensor(example.labels)
        if example.position_ids:
            positions[row, :n] = torch.tensor(example.position_ids)
            positions[row, n:] = torch.arange(length - n)  # the padding is a sequence by itself
    lengths = torch.tensor([len(e.input_ids) for e in examples])
    batch = {"input_ids": ids, "labels": labels, "row_lengths": lengths, "tokens": lengths.sum()}
    return batch | ({"position_ids": positions} if any(e.position_ids for e in examples) else {})


def pack(examples: list[TokenizedExample], max_length: int) -> list[TokenizedExample]:
    """Several examples in a row of at most ``max_length`` tokens, the longest first, each into the first row it fits.

    Positions restart at 0 with each example: without an attention mask and a cache, transformers then lets each example
    attend to itself alone. The first token of each carries no loss, since it would be predicted from its neighbour.
    """
    rows: list[list[TokenizedExample]] = []
    free: list[int] = []
    for example in sorted(examples, key=lambda e: -len(e.input_ids)):
        length = len(example.input_ids)
        row = next((i for i, tokens in enumerate(free) if tokens >= length), None)
        if row is None:
            rows.append([])
            free.append(max_length)
            row = -1
        rows[row].append(example)
        free[row] -= length
    return [
        TokenizedExample(
            input_ids=[t for e in row for t in e.input_ids],
            labels=[t for e in row for t in (IGNORE_INDEX, *e.labels[1:])],
            num_truncated=sum(e.num_truncated for e in row),
            position_ids=[p for e in row for p in range(len(e.input_ids))],
        )
        for row in rows
    ]
