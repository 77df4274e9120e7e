"""Which rows go through a model together."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from manners.data.tokenize import IGNORE_INDEX, TokenizedExample

MAX_LENGTH_RATIO = 2.0  # the longest row of a batch over its shortest: padding then stays below half


def length_batches(lengths: Sequence[int], slots: int) -> list[list[int]]:
    """Row numbers in batches of like length, each of at most ``slots`` padded tokens (one row at least)."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda r: lengths[r]):
        last = batches[-1] if batches else []
        fits = last and (len(last) + 1) * lengths[row] <= slots and lengths[row] <= MAX_LENGTH_RATIO * lengths[last[0]]
        batches = batches if fits else [*batches, []]
        batches[-1].append(row)
    return batches


Batch = dict[str, torch.Tensor]
SORT_WINDOW = 50  # batches whose examples are sorted together: like lengths meet, and the order stays random


class ResumableBatches:
    """The micro-batches of a whole run, epoch after epoch, as one list: a restart needs to know one position.

    ``len`` is ``steps * accumulate * parts``. Each epoch has an order of its own; an optimizer step may span two.
    An example says its ``length`` in tokens and how many of its items are ``trained``; ``collate`` makes a batch of
    several.

    Of ``processes`` each deals itself its ``shard`` of every micro-batch, which has ``size`` rows for each of them.
    Where memory is short it reads them in so many ``parts``, and accumulates over as many more: a step is the same.
    """

    def __init__(
        self,
        examples: list[Any],
        size: int,
        collate: Callable[[list[Any]], Batch],
        steps: int,
        accumulate: int,
        seed: int,
        by_length: bool,
        rank: int = 0,
        processes: int = 1,
        parts: int = 1,
    ):
        self.examples, self.collate, self.accumulate = examples, collate, accumulate * parts
        self.rank, self.processes, self.parts, size = rank, processes, parts, size * processes
        per_epoch = -(-len(examples) // size)
        epochs = -(-steps * accumulate // per_epoch)
        groups = [g for epoch in range(epochs) for g in epoch_order(examples, size, f"{seed}/{epoch}", by_length)]
        self.groups = groups[: steps * accumulate]
        self.position = 0  # micro-batches already given out, in parts

    def __len__(self) -> int:
        return len(self.groups) * self.parts

    def step(self, number: int) -> list[list[int]]:
        """The micro-batches of an optimizer step, whole, as lists of example indices."""
        micro = self.accumulate // self.parts
        return self.groups[number * micro : (number + 1) * micro]

    def __iter__(self) -> Iterator[Batch]:
        while self.position < len(self):
            step = self.step(self.position // self.accumulate)
            micro, part = divmod(self.position, self.parts)
            rows = [self.examples[i] for i in self.groups[micro]]
            batch = shard(rows, self.collate, self.rank, self.processes, part, self.parts)
            # The loss of an optimizer step is a mean over all its tokens, however they fall into micro-batches and
            # onto devices.
            batch["step_num_targets"] = torch.tensor(sum(self.examples[i].num_targets for group in step for i in group))
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def validation_batches(
    examples: list[Any], size: int, collate: Callable[[list[Any]], Batch], rank: int = 0, processes: int = 1
) -> list[Batch]:
    """Every example once, sorted by length: for validation, where the order does not matter."""
    near, size = sorted(examples, key=lambda e: e.length), size * processes
    return [shard(near[i : i + size], collate, rank, processes) for i in range(0, len(near), size)]


def shard(
    rows: list[Any], collate: Callable[[list[Any]], Batch], rank: int, processes: int, part: int = 0, parts: int = 1
) -> Batch:
    """A process's rows of a micro-batch: every so-many-eth, so that neighbours in length are dealt out evenly.

    Of those it is one of so many ``parts``, in which neighbours stay together. Where there are too few rows, some get
    a row that is another's, ``idle``: they must compute when the others do, since weights and gradients are exchanged
    on the way, and it counts for nothing.
    """
    own = rows[rank::processes]
    size = -(-len(own) // parts)
    own = own[part * size : (part + 1) * size]
    batch = collate(own or rows[:1])
    return batch if own else batch | {"idle": torch.tensor(True), "tokens": torch.tensor(0)}


def epoch_order(examples: list[Any], size: int, seed: str, by_length: bool) -> list[list[int]]:
    """An epoch's micro-batches as lists of example indices."""
    rng = random.Random(seed)
    indices = list(range(len(examples)))
    rng.shuffle(indices)
    window = SORT_WINDOW * size if by_length else size
    groups = []
    for start in range(0, len(indices), window):
        near = indices[start : start + window]
        if by_length:
            near.sort(key=lambda i: examples[i].length)
        groups += [near[i : i + size] for i in range(0, len(near), size)]
    if by_length:
        rng.shuffle(groups)
    return groups


def collate(examples: list[TokenizedExample], pad: int) -> Batch:
    """Right-padded ``input_ids``, ``labels`` and, for packed rows, ``position_ids``: each (B, T)."""
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
            positions[row, n:] = torch.arange(length - n)  # the padding is a sequence of its own
    batch = {"input_ids": ids, "labels": labels, "tokens": torch.tensor(sum(len(e.input_ids) for e in examples))}
    return batch | ({"position_ids": positions} if any(e.position_ids for e in examples) else {})


def pack(examples: list[TokenizedExample], max_length: int) -> list[TokenizedExample]:
    """Several examples in a row of at most ``max_length`` tokens, longest first into the first row with room.

    Positions begin anew with each example: without an attention mask and without a cache transformers then keeps
    the examples apart. The first token of each carries no loss, for it would be predicted from its neighbour.
    """
    rows: list[list[TokenizedExample]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda e: -len(e.input_ids)):
        need = len(example.input_ids)
        row = next((i for i, left in enumerate(room) if left >= need), None)
        if row is None:
            rows.append([example])
            room.append(max_length - need)
        else:
            rows[row].append(example)
            room[row] -= need
    return [
        TokenizedExample(
            input_ids=[t for e in row for t in e.input_ids],
            labels=[t for e in row for t in (IGNORE_INDEX, *e.labels[1:])],
            num_truncated=sum(e.num_truncated for e in row),
            position_ids=[p for e in row for p in range(len(e.input_ids))],
        )
        for row in rows
    ]
