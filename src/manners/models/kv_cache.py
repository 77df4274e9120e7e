"""A KV cache that is allocated once for prompt and reply, and the prefill that builds it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from manners.data.batching import length_batches
from manners.models.shared_prefixes import Reading, plain_reading, shared_reading

TokenIds = list[list[int]]
Moves = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # (K,): from which of S·T tokens, to which row and place
ReadPrompts = Callable[[Reading, Cache], torch.Tensor]  # fills the cache; the logits (N, V) that are asked for
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
    prompts: TokenIds, pad_token_id: int, max_new_tokens: int, device: Any, read: ReadPrompts, share_prefixes: bool
) -> tuple[Cache, torch.Tensor, torch.Tensor]:
    """Run the prompts; return their cache, the last logits (B, V) and the left-padded attention mask (B, T).

    The cache has capacity for ``max_new_tokens`` more. A prompt that stands in several rows is run once, and with
    ``share_prefixes`` what prompts begin with, such as a system message. Prompts of similar length are batched
    together, so that one long prompt does not pad all the others. The caches of the batches are then merged into one,
    left-padded: decoding the batches separately would take one forward pass per batch for every token.
    """
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(tuple(prompt), []).append(row)
    distinct, width = list(rows_of), max(map(len, prompts))
    caches: list[DynamicCache] = []
    moves: list[Moves] = []
    last_logits = [torch.empty(0)] * len(prompts)
    for numbers in length_batches([len(p) for p in distinct], PREFILL_TOKENS):
        batch = [distinct[n] for n in numbers]
        reading, paths = prompt_reading(batch, pad_token_id, device, share_prefixes)
        caches.append(DynamicCache())  # full attention in every layer: a model with sliding windows masks by itself
        logits = read(reading, caches[-1])
        copies = [(row, path) for prompt, path in zip(batch, paths, strict=True) for row in rows_of[prompt]]
        moves.append(
            (
                torch.cat([path for _, path in copies]),
                torch.cat([torch.full_like(path, row) for row, path in copies]),
                torch.cat([torch.arange(width - len(path), width, device=device) for _, path in copies]),
            )
        )
        for number, of_prompt in zip(numbers, logits, strict=True):
            for row in rows_of[distinct[number]]:
                last_logits[row] = of_prompt
    layers: list[Any] = []
    for i in range(len(caches[0].layers)):
        states = [cache.layers[i] for cache in caches]
        key_buffer, value_buffer = (
            merge_batches([getattr(s, name) for s in states], moves, (len(prompts), width + max_new_tokens))
            for name in ("keys", "values")
        )
        layers.append(PreallocatedLayer(key_buffer, value_buffer, width))
        for layer in states:
            layer.reset()  # so that at most one layer is in memory twice
    return Cache(layers), torch.stack(last_logits), left_padded(prompts, pad_token_id, device)[1]


def prompt_reading(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: Any, share_prefixes: bool
) -> tuple[Reading, list[torch.Tensor]]:
    """How the prompts are read, asked for what follows them, and the indices of each prompt's tokens in (S·T)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[*p, *[pad_token_id] * (width - len(p))] for p in prompts], device=device)
    ends = torch.tensor([[t + 1 == len(p) for t in range(width)] for p in prompts])
    if share_prefixes and (shared := shared_reading(ids, ends)):
        return shared
    paths = [torch.arange(i * width, i * width + len(p), device=device) for i, p in enumerate(prompts)]
    return plain_reading(ids, ends.to(device)), paths


def merge_batches(states: list[torch.Tensor], moves: list[Moves], size: tuple[int, int]) -> torch.Tensor:
    """Merge the states (S, heads, T, d) of batches into one buffer (rows, heads, tokens, d) of ``size``.

    Each batch has its moves.
    """
    rows, tokens = size
    buffer = states[0].new_zeros(rows, states[0].shape[1], tokens, states[0].shape[3])
    for batch, (source, row, place) in zip(states, moves, strict=True):
        buffer[row, :, place] = batch.transpose(1, 2).flatten(0, 1)[source]
    return buffer


def left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-pad the prompts: token ids (B, T) and attention mask (B, T)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask
