"""What a decoder has read of its prompts, kept where replies can be written on in place."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from manners.data.batching import length_batches

TokenIds = list[list[int]]
# What goes on from a cache: token ids (B, T), the mask of all tokens, the new ones' positions → the last logits (B, V)
Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Cache], torch.Tensor]
PREFILL_TOKENS = 1024  # padded tokens read at once: more would only hold more padding


class PreallocatedLayer(DynamicLayer):
    """Keys and values (B, heads, T, d) with room for more tokens.

    A DynamicLayer copies all it holds for each new token, and again for each row that leaves; this copies the token,
    and the row that takes the place of the one that left.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int):
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.whole = keys, values
        self.show(len(keys), length)

    def show(self, rows: int, length: int) -> None:
        self.keys, self.values = (table[:rows, :, :length] for table in self.whole)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, length = self.keys.shape[0], self.keys.shape[2]
        self.show(rows, length + key_states.shape[2])
        self.keys[:, :, length:], self.values[:, :, length:] = key_states, value_states
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order: those that stay where they are cost nothing."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        for table in (self.keys, self.values):
            table[moved] = table[indices[moved]]
        self.show(len(indices), self.keys.shape[2])


def prefill(
    prompts: TokenIds, pad: int, room: int, device: Any, forward: Forward
) -> tuple[Cache, torch.Tensor, torch.Tensor]:
    """A cache of the prompts with ``room`` for so many more tokens, the last logits (B, V), and the mask (B, T).

    Prompts of like length are read together: one long prompt would have all others read as much padding. Their caches
    become one, left-padded: to decode them apart would go through the model once more for every token.
    """
    groups = length_batches([len(p) for p in prompts], PREFILL_TOKENS)
    parts = []
    for rows in groups:
        ids, mask = left_padded([prompts[r] for r in rows], pad, device)
        cache = DynamicCache()  # of full attention in every layer: where a model's is a window, its mask says so
        logits = forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        parts.append((rows, cache, logits))
    width = max(map(len, prompts))
    layers: list[Any] = []
    for at in range(len(parts[0][1].layers)):
        held = [(rows, cache.layers[at]) for rows, cache, _ in parts]
        keys, values = (
            merge_tables([(rows, getattr(layer, name)) for rows, layer in held], width, room)
            for name in ("keys", "values")
        )
        layers.append(PreallocatedLayer(keys, values, width))
        for _, layer in held:
            layer.reset()  # so that only one layer is ever held twice
    back = torch.tensor([r for rows in groups for r in rows], device=device).argsort()
    return Cache(layers), torch.cat([logits for _, _, logits in parts])[back], left_padded(prompts, pad, device)[1]


def merge_tables(parts: list[tuple[list[int], torch.Tensor]], width: int, room: int) -> torch.Tensor:
    """Tables (b, heads, t, d) of some rows each as one of all, (B, heads, width + room, d), right-aligned at width."""
    _, heads, _, size = parts[0][1].shape
    whole = parts[0][1].new_zeros(sum(len(rows) for rows, _ in parts), heads, width + room, size)
    for rows, table in parts:
        whole[rows, :, width - table.shape[2] : width] = table
    return whole


def left_padded(prompts: TokenIds, pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and the mask of the real ones: (B, T) both."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask
