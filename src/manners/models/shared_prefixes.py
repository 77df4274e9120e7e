"""What several rows begin with is read once: the rows of a batch as branches of one tree.

Replies to the same prompt (RLOO samples several) repeat the prompt, and with a chat template all rows repeat its system
message. Rows that begin alike are laid into one sequence, each without the part that it has in common with the row
before it. Every token attends to what precedes it in its own row, by a mask, and has the position that it has there. So
log-probabilities and gradients are those of separate rows, up to rounding, for fewer tokens.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

MAX_ROWS = 8  # as long as the longest, that one sequence may have room for
# Of the time that a token takes elsewhere, for each token of its sequence: SmolLM2-135M, forward and backward, on a CPU
# (1/2500 in 32 bits, 1/1300 in bf16).
ATTENTION = 1 / 1500
WORTHWHILE = 0.9  # of the time that separate rows take; the estimate is no better than that


@dataclass(frozen=True)
class Reading:
    """What a model reads (S, T), and the N positions that are asked for, by their index in the flattened (S·T)."""

    ids: torch.Tensor
    positions: torch.Tensor
    extra: dict[str, torch.Tensor] = field(default_factory=dict)  # mask and position ids, where rows share a prefix


def plain_reading(ids: torch.Tensor, asked: torch.Tensor) -> Reading:
    """The right-padded rows ``ids`` (B, T) as they are, and the positions in ``asked`` (B, T)."""
    return Reading(ids, asked.flatten().nonzero()[:, 0])


def shared_reading(ids: torch.Tensor, asked: torch.Tensor) -> tuple[Reading, list[torch.Tensor]] | None:
    """The same positions, in the same order, with common prefixes read once; None where that would save little.

    With it, for each row the indices of its tokens in the flattened (S·T). A row is read up to its last position in
    ``asked``: what follows has no effect on it.
    """
    tokens, wanted = ids.cpu(), asked.cpu()
    lengths = (wanted * torch.arange(1, wanted.shape[1] + 1)).amax(1)
    order, common = sorted_rows(tokens, lengths)
    in_order = lengths[order].tolist()
    rooms = [max(in_order) * halves // 2 for halves in range(2, 2 * MAX_ROWS + 1)]
    layout = min((lay_out(in_order, common, room) for room in rooms), key=lambda found: estimated_time(*found.shape))
    shape = (_, width) = layout.shape
    if estimated_time(*shape) > WORTHWHILE * estimated_time(*ids.shape):
        return None
    packed, position_ids = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    visible = torch.eye(width, dtype=torch.bool).repeat(shape[0], 1, 1)  # the padding sees itself
    paths: list[torch.Tensor] = [torch.empty(0)] * len(ids)
    for row, sequence, path in zip(order, layout.sequences, row_paths(in_order, common, layout), strict=True):
        packed[sequence, path] = tokens[row, : len(path)]
        position_ids[sequence, path] = torch.arange(len(path))
        visible[sequence, path[:, None], path] = torch.ones(len(path), len(path), dtype=torch.bool).tril()
        paths[row] = sequence * width + path
    positions = torch.cat([path[row[: len(path)]] for path, row in zip(paths, wanted, strict=True)])
    extra = {"attention_mask": visible[:, None].to(ids.device), "position_ids": position_ids.to(ids.device)}
    reading = Reading(packed.to(ids.device), positions.to(ids.device), extra)
    return reading, [path.to(ids.device) for path in paths]


def sorted_rows(tokens: torch.Tensor, lengths: torch.Tensor) -> tuple[list[int], list[int]]:
    """The rows (B, T) in lexicographic order, and how many tokens each has in common with the one before it.

    In this order a row has no more in common with any earlier row than with the one before it.
    """
    rows = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    order = sorted(range(len(rows)), key=lambda row: rows[row])
    ordered, sizes = tokens[order], lengths[order]
    equal = (ordered[1:] == ordered[:-1]).cumprod(1).sum(1)
    return order, [0, *torch.minimum(equal, torch.minimum(sizes[1:], sizes[:-1])).tolist()]


class Layout(NamedTuple):
    """Which of S sequences each row is laid into, in order, and the tokens of each sequence."""

    sequences: list[int]
    sizes: list[int]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the padded batch (S, T)."""
        return len(self.sizes), max(self.sizes)


def lay_out(lengths: list[int], common: list[int], room: int) -> Layout:
    """Lay sorted rows into sequences of at most ``room`` tokens, which is enough for the longest row."""
    layout = Layout([], [])
    for length, shared in zip(lengths, common, strict=True):
        if layout.sizes and layout.sizes[-1] + length - shared <= room:
            layout.sizes[-1] += length - shared
        else:
            layout.sizes.append(length)
        layout.sequences.append(len(layout.sizes) - 1)
    return layout


def row_paths(lengths: list[int], common: list[int], layout: Layout) -> Iterator[torch.Tensor]:
    """Where in its sequence the tokens of each sorted row are, in order: (length,) each."""
    path, last, used = torch.empty(0, dtype=torch.long), -1, 0
    for length, shared, sequence in zip(lengths, common, layout.sequences, strict=True):
        shared, used = (shared, used) if sequence == last else (0, 0)
        path = torch.cat([path[:shared], torch.arange(used, used + length - shared)])
        last, used = sequence, used + length - shared
        yield path


def estimated_time(rows: int, width: int) -> float:
    """Of a pass over ``rows`` x ``width`` tokens, in the time that one token takes without attention."""
    return rows * width * (1 + width * ATTENTION)


def supports_shared_prefixes(model: Any) -> bool:
    """Return whether several rows may be laid into one sequence of a decoder.

    Only where every layer sees all tokens that the mask allows: in a sliding window the other rows would take the place
    of the prefix, and a recurrent layer would read them.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, forward = model.config.get_text_config(), base.base_model.forward
    one_kind = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
    takes_positions = "position_ids" in inspect.signature(forward).parameters  # ALiBi counts tokens by itself
    sees_all = set(getattr(config, "layer_types", None) or [one_kind]) == {"full_attention"} and takes_positions
    return bool(model.config._attn_implementation == "sdpa" and sees_all)
