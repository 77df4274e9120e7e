"""A KV cache that is allocated once for prompt and reply, and the prefill that builds it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from manners.data.batching import length_batches

TokenIds = list[list[int]]
# One decoding step: new token ids (B, t), attention mask (B, T), positions of the new tokens (B, t), cache → the last
# position's logits (B, V).
Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Cache], torch.Tensor]
PREFILL_TOKENS = 1024  # padded tokens in one prefill batch: larger batches only hold more padding


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values (B, heads, T, d), views of buffers that have capacity for more tokens.

    DynamicLayer copies the cache for each new token, and again whenever rows leave the batch. This layer copies the
    new token only, and the rows that move into the place of those that left.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, key_buffer: torch.Tensor, value_buffer: torch.Tensor, num_tokens: int):
        super().__init__()
        self.dtype, self.device, self.is_initialized = key_buffer.dtype, key_buffer.device, True
        self.key_buffer, self.value_buffer = key_buffer, value_buffer  # (rows, heads, capacity, d)
        self.set_view(len(key_buffer), num_tokens)

    def set_view(self, num_rows: int, num_tokens: int) -> None:
        """Expose the first ``num_rows`` rows and ``num_tokens`` tokens of the buffers as ``keys`` and ``values``."""
        self.keys = self.key_buffer[:num_rows, :, :num_tokens]
        self.values = self.value_buffer[:num_rows, :, :num_tokens]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states (B, heads, t, d) of new tokens and return all keys and values (B, heads, T + t, d)."""
        num_rows, num_tokens = self.keys.shape[0], self.keys.shape[2]
        self.set_view(num_rows, num_tokens + key_states.shape[2])
        self.keys[:, :, num_tokens:], self.values[:, :, num_tokens:] = key_states, value_states
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows ``indices`` (b,), in this order. Rows that keep their place are not copied."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        for states in (self.keys, self.values):
            states[moved] = states[indices[moved]]
        self.set_view(len(indices), self.keys.shape[2])


def prefill(
    prompts: TokenIds, pad_token_id: int, max_new_tokens: int, device: Any, forward: Forward
) -> tuple[Cache, torch.Tensor, torch.Tensor]:
    """Run the prompts; return their cache, the last logits (B, V) and the left-padded attention mask (B, T).

    The cache has capacity for ``max_new_tokens`` more. A prompt that stands in several rows is run once. Prompts of
    similar length are batched together, so that one long prompt does not pad all the others. The caches of the batches
    are then merged into one, left-padded: decoding the batches separately would take one forward pass per batch for
    every token.
    """
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(tuple(prompt), []).append(row)
    distinct = list(rows_of)
    prefilled = []
    for numbers in length_batches([len(p) for p in distinct], PREFILL_TOKENS):
        batch = [distinct[n] for n in numbers]
        ids, mask = left_padded(batch, pad_token_id, device)
        cache = DynamicCache()  # full attention in every layer: a model with sliding windows masks by itself
        logits = forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        rows = torch.tensor([row for p in batch for row in rows_of[p]], device=device)
        sources = torch.tensor([i for i, p in enumerate(batch) for _ in rows_of[p]], device=device)
        prefilled.append((rows, sources, cache, logits[sources]))
    width = max(map(len, prompts))
    layers: list[Any] = []
    for i in range(len(prefilled[0][2].layers)):
        parts = [(rows, sources, cache.layers[i]) for rows, sources, cache, _ in prefilled]
        key_buffer, value_buffer = (
            merge_batches([(r, s, getattr(layer, name)) for r, s, layer in parts], width, max_new_tokens)
            for name in ("keys", "values")
        )
        layers.append(PreallocatedLayer(key_buffer, value_buffer, width))
        for *_, layer in parts:
            layer.reset()  # so that at most one layer is in memory twice
    prompt_order = torch.cat([rows for rows, *_ in prefilled]).argsort()
    logits = torch.cat([logits for *_, logits in prefilled])[prompt_order]
    return Cache(layers), logits, left_padded(prompts, pad_token_id, device)[1]


def merge_batches(
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], width: int, max_new_tokens: int
) -> torch.Tensor:
    """Merge the states (b, heads, t, d) of batches into one buffer (B, heads, width + max_new_tokens, d).

    Each part has the rows of the buffer that it fills, and for each of them the row of its states. Prompts end at
    ``width``.
    """
    _, heads, _, size = parts[0][2].shape
    buffer = parts[0][2].new_zeros(sum(len(rows) for rows, *_ in parts), heads, width + max_new_tokens, size)
    for rows, sources, states in parts:
        buffer[rows, :, width - states.shape[2] : width] = states[sources]
    return buffer


def left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-pad the prompts: token ids (B, T) and attention mask (B, T)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask
