"""Continue token sequences, behind one small interface: ``generate(model, prompts, sampling)``.

Every knob is explicit. A checkpoint's own generation_config never leaks in: Qwen2.5's repetition penalty alone makes
the replies come from another distribution than the log-probabilities that PPO computes (trl#1005).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache, GenerationConfig

from manners.grouping import by_length


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int
    stops: tuple[int, ...]  # a reply ends with, and contains, the first of these
    pad: int
    temperature: float = 0.0  # 0 takes the likeliest token
    backend: "str | Backend" = "auto"  # own: fastest on a CPU; transformers: elsewhere; or an engine made for the run


Ids = list[list[int]]
Backend = Callable[[Any, Ids, Sampling, torch.Tensor | None], Ids]  # what ``generate`` is, less its checks


def generate(model: Any, prompts: Ids, sampling: Sampling, draws: torch.Tensor | None = None) -> Ids:
    """A reply's tokens for each prompt, its stop token included where it came to one.

    ``draws`` (B, max_new_tokens) are uniform in [0, 1): a row's reply depends on its own draws alone, not on its
    neighbours in the batch. Other backends seed their generators with them instead.
    """
    backend = sampling.backend
    if backend == "auto":
        backend = "own" if model.device.type == "cpu" else "transformers"
    reply = {"own": decode, "transformers": delegate}[backend] if isinstance(backend, str) else backend
    if sampling.temperature > 0 and draws is None:
        raise ValueError("sampling needs draws")
    was_training = model.training
    model.eval()
    with torch.no_grad():
        replies = reply(model, prompts, sampling, draws)
    model.train(was_training)
    return replies


def decode(model: Any, prompts: Ids, sampling: Sampling, draws: torch.Tensor | None) -> Ids:
    """Prompts of like length are read together, and all replies are decoded together."""
    return decode_batch(model, prompts, sampling, draws, read_by_length)


def decode_batch(
    model: Any, prompts: Ids, sampling: Sampling, draws: torch.Tensor | None, read: "Read | None" = None
) -> Ids:
    replies: Ids = [[] for _ in prompts]
    for rows, tokens in steps(model, prompts, sampling, draws, read):
        for row, token in zip(rows, tokens, strict=True):
            replies[row].append(token)
    return replies


def stream(model: Any, prompt: list[int], sampling: Sampling, draws: torch.Tensor | None = None) -> Iterator[int]:
    """The tokens of one reply as they come, on any device: those of ``generate`` by our own decoding.

    ``draws`` (max_new_tokens,) decide as there. The model is to be in eval mode.
    """
    if sampling.temperature > 0 and draws is None:
        raise ValueError("sampling needs draws")
    for _, tokens in steps(model, [prompt], sampling, None if draws is None else draws[None]):
        yield tokens[0]


@torch.no_grad()
def steps(
    model: Any, prompts: Ids, sampling: Sampling, draws: torch.Tensor | None, read: "Read | None" = None
) -> Iterator[tuple[list[int], list[int]]]:
    """Token by token with a cache: the rows still at work, by number of their prompt, and the next token of each.

    Rows that have ended are dropped: the batch shrinks as replies come to their stop. ``read`` begins the cache.
    """
    device = model.device
    cache, logits, mask = (read or read_together)(model, prompts, sampling.pad)
    positions = mask.sum(1, keepdim=True) - 1
    stops = torch.tensor(sampling.stops, device=device)
    live = torch.arange(len(prompts), device=device)
    for step in range(sampling.max_new_tokens):
        drawn = None if draws is None or sampling.temperature == 0 else draws[live.cpu(), step]
        chosen = pick(logits, sampling.temperature, drawn)
        yield live.tolist(), chosen.tolist()
        going_on = ~torch.isin(chosen, stops)
        if step + 1 == sampling.max_new_tokens or not going_on.any():
            break
        if not going_on.all():
            kept = going_on.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            live, chosen, mask, positions = live[kept], chosen[kept], mask[kept], positions[kept]
        positions, mask = positions + 1, torch.cat([mask, mask.new_ones(len(live), 1)], 1)
        logits = forward(model, chosen[:, None], mask, positions, cache)


Begun = tuple[DynamicCache, torch.Tensor, torch.Tensor]  # the cache, logits (B, V) of the next token, mask (B, T)
Read = Callable[[Any, Ids, int], Begun]


def read_together(model: Any, prompts: Ids, pad: int) -> Begun:
    ids, mask = left_padded(prompts, pad, model.device)
    cache = DynamicCache(config=model.config)
    return cache, forward(model, ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache), mask


def read_by_length(model: Any, prompts: Ids, pad: int) -> Begun:
    """Prompts of like length together: one long prompt would have all others read as much padding.

    Their caches then become one: to decode group by group would go through the model once more for every token.
    """
    groups = by_length([len(p) for p in prompts], slots=2**62)
    if len(groups) == 1:
        return read_together(model, prompts, pad)
    caches, logits, masks = zip(
        *(read_together(model, [prompts[r] for r in rows], pad) for rows in groups), strict=True
    )
    back = torch.tensor([r for rows in groups for r in rows], device=model.device).argsort()
    width = max(map(len, prompts))
    whole = DynamicCache(config=model.config)
    for at, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        keys = [F.pad(layer.keys, (0, 0, width - layer.keys.shape[2], 0)) for layer in layers]
        values = [F.pad(layer.values, (0, 0, width - layer.values.shape[2], 0)) for layer in layers]
        whole.update(torch.cat(keys)[back], torch.cat(values)[back], at)
    mask = torch.cat([F.pad(mask, (width - mask.shape[1], 0)) for mask in masks])
    return whole, torch.cat(logits)[back], mask[back]


def forward(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """The logits (B, V) after the last of ``ids`` (B, T), which the cache then knows."""
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1]


def pick(logits: torch.Tensor, temperature: float, draws: torch.Tensor | None) -> torch.Tensor:
    """The likeliest token of each row (B, V) → (B,), or the one at which the cumulated probability passes its draw.

    On a CPU that is several times faster than ``torch.multinomial``, and leaves no hidden state behind.
    """
    if temperature == 0 or draws is None:
        return logits.argmax(-1)
    cumulated = torch.softmax(logits.float() / temperature, -1).cumsum_(-1)  # (B, V)
    wanted = draws.to(logits.device, torch.float32)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, wanted, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def delegate(model: Any, prompts: Ids, sampling: Sampling, draws: torch.Tensor | None) -> Ids:
    """The same by transformers' ``generate``, which has the better kernels on a GPU."""
    ids, mask = left_padded(prompts, sampling.pad, model.device)
    sample = sampling.temperature > 0
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sample,
        temperature=sampling.temperature if sample else None,
        top_k=0 if sample else None,
        top_p=1.0 if sample else None,
        repetition_penalty=1.0,
        eos_token_id=list(sampling.stops),
        pad_token_id=sampling.pad,
        use_cache=True,
    )
    # `generate` fills gaps in its settings from the checkpoint's own: hide those for the call.
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, owner.generation_config = owner.generation_config, settings
    try:
        with torch.random.fork_rng():
            if sample and draws is not None:
                torch.manual_seed(int(draws.flatten()[0].double() * 2**53))
            new = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, ids.shape[1] :]
    finally:
        owner.generation_config = own
    return [until_stop(row, sampling.stops) for row in new.tolist()]


def until_stop(ids: list[int], stops: tuple[int, ...]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]


def left_padded(prompts: Ids, pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and the mask of the real ones: (B, T) both."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask
