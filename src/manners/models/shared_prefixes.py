"""What several rows begin with is read once.

A chat template puts the same system message before every conversation: it is the *prefix* of all rows of a batch, whose
keys and values are computed once for all of them. Replies to the same prompt (RLOO samples several) repeat the prompt,
too: such rows are laid into one sequence as branches of a tree, each without the part that it has in common with the
row before it. Every token attends to what precedes it in its own row, by a mask, and has the position that it has
there. So log-probabilities and gradients are those of separate rows, up to rounding, for fewer tokens.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import DynamicCache
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

MAX_ROWS = 8  # as long as the longest, that one sequence may have room for
# Of the time that a token takes elsewhere, for each token of its sequence: SmolLM2-135M, forward and backward, on a CPU
# (1/2500 in 32 bits, 1/1300 in bf16).
ATTENTION = 1 / 1500
WORTHWHILE = 0.9  # of the time that separate rows take; the estimate is no better than that


@dataclass(frozen=True)
class Reading:
    """What a model reads: S sequences ``ids`` (S, T), behind one ``prefix`` (P,) where there is one.

    ``positions`` are the N that are asked for, by their index in the flattened (S·T).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    prefix: torch.Tensor | None = None
    extra: dict[str, torch.Tensor] = field(default_factory=dict)  # position ids; a mask where rows share a sequence


def plain_reading(ids: torch.Tensor, asked: torch.Tensor) -> Reading:
    """The right-padded rows ``ids`` (B, T) as they are, and the positions in ``asked`` (B, T)."""
    return Reading(ids, asked.flatten().nonzero()[:, 0])


def read_once(model: Any, ids: torch.Tensor, asked: torch.Tensor) -> Reading:
    """The rows (B, T) and positions of ``plain_reading``, with common beginnings read once where ``model`` allows it.

    The prefix draws dropout once for all rows.
    """
    shared = shared_reading(ids, asked, supports_prefix(model)) if supports_shared_prefixes(model) else None
    return shared[0] if shared else plain_reading(ids, asked)


def model_inputs(model: Any, reading: Reading, cache: Cache | None = None) -> dict[str, Any]:
    """Keyword arguments of the pass of ``model``, or of its decoder, over ``reading``. The prefix is read here.

    An empty ``cache`` is given back with the prefix in it; after the pass it holds all (S, heads, P + T, d).
    """
    if reading.prefix is None and cache is None:
        return {"input_ids": reading.ids, "use_cache": False, **reading.extra}
    cache = DynamicCache() if cache is None else cache  # full attention in every layer
    if reading.prefix is not None:
        model.get_decoder()(input_ids=reading.prefix[None], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(reading.ids))
    return {"input_ids": reading.ids, "past_key_values": cache, "use_cache": True, **reading.extra}


def shared_reading(
    ids: torch.Tensor, asked: torch.Tensor, with_prefix: bool = True
) -> tuple[Reading, list[torch.Tensor]] | None:
    """The same positions, in the same order, with common beginnings read once; None where that would save little.

    With it, for each row the indices of its tokens in the flattened (S·(P + T)). A row is read up to its last position
    in ``asked``: what follows has no effect on it. ``with_prefix`` says whether there may be a prefix.
    """
    tokens, wanted = ids.cpu(), asked.cpu()
    if not wanted.any():
        return None
    lengths = (wanted * torch.arange(1, wanted.shape[1] + 1)).amax(1)
    prefixes = {0, common_prefix(tokens, wanted) if with_prefix else 0}
    plan = min((fastest_plan(tokens, lengths, prefix) for prefix in prefixes), key=lambda plan: plan.time)
    if plan.time > WORTHWHILE * estimated_time(*ids.shape):
        return None
    prefix, (count, width) = plan.prefix, plan.layout.shape
    packed, position_ids = torch.zeros(count, width, dtype=torch.long), torch.zeros(count, width, dtype=torch.long)
    visible = torch.eye(width, dtype=torch.bool).repeat(count, 1, 1)  # the padding sees itself
    paths: list[torch.Tensor] = [torch.empty(0)] * len(ids)
    positions = list(paths)
    for row, sequence, path in zip(plan.order, plan.layout.sequences, row_paths(*plan[2:]), strict=True):
        end = prefix + len(path)
        packed[sequence, path] = tokens[row, prefix:end]
        position_ids[sequence, path] = torch.arange(prefix, end)
        visible[sequence, path[:, None], path] = torch.ones(len(path), len(path), dtype=torch.bool).tril()
        positions[row] = sequence * width + path[wanted[row, prefix:end]]
        paths[row] = sequence * (prefix + width) + torch.cat([torch.arange(prefix), prefix + path])
    extra = {"position_ids": position_ids.to(ids.device)} if prefix or count < len(ids) else {}
    if count < len(ids):
        seen = torch.cat([torch.ones(count, width, prefix, dtype=torch.bool), visible], 2)  # (S, T, P + T)
        extra["attention_mask"] = seen[:, None].to(ids.device)
    shared = ids[0, :prefix] if prefix else None
    reading = Reading(packed.to(ids.device), torch.cat(positions).to(ids.device), shared, extra)
    return reading, [path.to(ids.device) for path in paths]


def common_prefix(tokens: torch.Tensor, wanted: torch.Tensor) -> int:
    """How many tokens all of the rows (B, T) begin with, before the first position that any of them is asked for."""
    equal = (tokens == tokens[:1]).all(0) & ~wanted.any(0)
    return int(equal.int().cumprod(0).sum()) if len(tokens) > 1 else 0


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


class Plan(NamedTuple):
    """Rows behind a prefix, in an order and with lengths and common beginnings as ``sorted_rows`` has them."""

    prefix: int
    order: list[int]
    lengths: list[int]
    common: list[int]
    layout: Layout

    @property
    def time(self) -> float:
        """By ``estimated_time``."""
        return estimated_time(*self.layout.shape, self.prefix)


def fastest_plan(tokens: torch.Tensor, lengths: torch.Tensor, prefix: int) -> Plan:
    """The layout of the rows (B, T), of which the first ``lengths`` (B,) tokens are read, that takes the least time.

    Several rows in a sequence need a mask, and have to save as much as sharing anything.
    """
    behind = (lengths - prefix).clamp(min=0)  # nothing of a row that is not asked for anything
    order, common = sorted_rows(tokens[:, prefix:], behind)
    in_order = behind[order].tolist()
    rooms = [max(in_order) * halves // 2 for halves in range(2, 2 * MAX_ROWS + 1)]
    layouts = [Layout(list(range(len(order))), in_order), *(lay_out(in_order, common, room) for room in rooms)]
    separate, *shared = (Plan(prefix, order, in_order, common, layout) for layout in layouts)
    fastest = min(shared, key=lambda plan: plan.time)
    return fastest if fastest.time <= WORTHWHILE * separate.time else separate


def row_paths(lengths: list[int], common: list[int], layout: Layout) -> Iterator[torch.Tensor]:
    """Where in its sequence the tokens of each sorted row are, in order: (length,) each."""
    path, last, used = torch.empty(0, dtype=torch.long), -1, 0
    for length, shared, sequence in zip(lengths, common, layout.sequences, strict=True):
        shared, used = (shared, used) if sequence == last else (0, 0)
        path = torch.cat([path[:shared], torch.arange(used, used + length - shared)])
        last, used = sequence, used + length - shared
        yield path


def estimated_time(rows: int, width: int, prefix: int = 0) -> float:
    """Of a pass over a prefix and ``rows`` x ``width`` tokens, in the time that one token takes without attention."""
    return rows * width * (1 + (prefix + width) * ATTENTION) + prefix * (1 + prefix * ATTENTION)


def supports_shared_prefixes(model: Any) -> bool:
    """Return whether several rows may be laid into one sequence of a decoder.

    Only where every layer sees all tokens that the mask allows: in a sliding window the other rows would take the place
    of the prefix, and a recurrent layer would read them. And not where the angle of a position depends on how much is
    read at once (RoPE that scales with the length): a prefix that is read alone would get those of a short text.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, forward = model.config.get_text_config(), base.base_model.forward
    one_kind = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
    scaled = any(kind in str(getattr(config, "rope_parameters", "")) for kind in ("dynamic", "longrope"))
    takes_positions = "position_ids" in inspect.signature(forward).parameters  # ALiBi counts tokens by itself
    sees_all = set(getattr(config, "layer_types", None) or [one_kind]) == {"full_attention"}
    return bool(model.config._attn_implementation == "sdpa" and sees_all and takes_positions and not scaled)


def supports_prefix(model: Any) -> bool:
    """Return whether a forward pass of such a model may have a prefix: not through layers that forget their cache.

    Those are layers that the backward pass computes again (gradient checkpointing), and compiled ones. Nor through
    layers whose weights are sharded: FSDP gathers them for what a layer gives to the next one, not for what is cached.
    """
    if any(isinstance(m, FSDPModule) for m in model.modules()):
        return False
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    forgetful = (m._compiled_call_impl is not None or (m.training and m.gradient_checkpointing) for m in layers)
    return not any(forgetful)
