"""Continue token sequences, behind one small interface: ``generate(model, prompts, sampling)``.

Every knob is explicit. A checkpoint's own generation_config never leaks in: Qwen2.5's repetition penalty alone makes
the replies come from another distribution than the log-probabilities that PPO computes (trl#1005).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache

from manners.models.kv_cache import TokenIds, left_padded, prefill


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int
    stops: tuple[int, ...]  # a reply ends with, and contains, the first of these
    pad: int
    temperature: float = 0.0  # 0 takes the likeliest token
    backend: "str | Backend" = "auto"  # native: fastest on a CPU; transformers: elsewhere; or an engine made for the run


Backend = Callable[[Any, TokenIds, Sampling, torch.Tensor | None], TokenIds]  # what ``generate`` is, less its checks


def generate_ids(model: Any, prompts: TokenIds, sampling: Sampling, draws: torch.Tensor | None = None) -> TokenIds:
    """A reply's tokens for each prompt, its stop token included where it came to one.

    ``draws`` (B, max_new_tokens) are uniform in [0, 1): a row's reply depends on its own draws alone, not on its
    neighbours in the batch. Other backends seed their generators with them instead.
    """
    backend = sampling.backend
    if backend == "auto":
        backend = "native" if model.device.type == "cpu" else "transformers"
    reply = {"native": native_generate, "transformers": hf_generate}[backend] if isinstance(backend, str) else backend
    if sampling.temperature > 0 and draws is None:
        raise ValueError("sampling needs draws")
    was_training = model.training
    model.eval()
    with torch.no_grad():
        replies = reply(model, prompts, sampling, draws)
    model.train(was_training)
    return replies


def native_generate(model: Any, prompts: TokenIds, sampling: Sampling, draws: torch.Tensor | None) -> TokenIds:
    replies: TokenIds = [[] for _ in prompts]
    for rows, tokens in decode_steps(model, prompts, sampling, draws):
        for row, token in zip(rows, tokens, strict=True):
            replies[row].append(token)
    return replies


def stream_tokens(
    model: Any, prompt: list[int], sampling: Sampling, draws: torch.Tensor | None = None
) -> Iterator[int]:
    """The tokens of one reply as they come, on any device: those of ``generate_ids`` by our own decoding.

    ``draws`` (max_new_tokens,) decide as there. The model is to be in eval mode.
    """
    if sampling.temperature > 0 and draws is None:
        raise ValueError("sampling needs draws")
    for _, tokens in decode_steps(model, [prompt], sampling, None if draws is None else draws[None]):
        yield tokens[0]


@torch.no_grad()
def decode_steps(
    model: Any, prompts: TokenIds, sampling: Sampling, draws: torch.Tensor | None
) -> Iterator[tuple[list[int], list[int]]]:
    """Token by token with a cache: the rows still at work, by number of their prompt, and the next token of each.

    Rows that have ended are dropped: the batch shrinks as replies come to their stop.
    """
    forward = partial(next_logits, model)
    device, room = model.device, sampling.max_new_tokens
    cache, logits, mask = prefill(prompts, sampling.pad, room, device, forward)
    positions = mask.sum(1, keepdim=True) - 1
    stops = torch.tensor(sampling.stops, device=device)
    live = torch.arange(len(prompts), device=device)
    for step in range(room):
        drawn = None if draws is None or sampling.temperature == 0 else draws[live.cpu(), step]
        chosen = sample_token(logits, sampling.temperature, drawn)
        yield live.tolist(), chosen.tolist()
        going_on = ~torch.isin(chosen, stops)
        if step + 1 == room or not going_on.any():
            break
        if not going_on.all():
            kept = compact_rows(going_on)
            cache.batch_select_indices(kept)
            live, chosen, mask, positions = live[kept], chosen[kept], mask[kept], positions[kept]
        positions, mask = positions + 1, torch.cat([mask, mask.new_ones(len(live), 1)], 1)
        logits = forward(chosen[:, None], mask, positions, cache)


def next_logits(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
) -> torch.Tensor:
    """The logits (B, V) after the last of ``ids`` (B, T), which the cache then knows: a ``Forward`` of the cache's."""
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1]  # type: ignore[no-any-return]


def compact_rows(going_on: torch.Tensor) -> torch.Tensor:
    """The rows that go on (B,) → (b,), each where it was; only those past the b-th move, to where others have left."""
    kept = going_on.nonzero()[:, 0]
    order = torch.arange(len(kept), device=kept.device)
    order[~going_on[: len(kept)]] = kept[kept >= len(kept)]
    return order


def sample_token(logits: torch.Tensor, temperature: float, draws: torch.Tensor | None) -> torch.Tensor:
    """The likeliest token of each row (B, V) → (B,), or the one at which the cumulated probability passes its draw.

    On a CPU that is several times faster than ``torch.multinomial``, and leaves no hidden state behind.
    """
    if temperature == 0 or draws is None:
        return logits.argmax(-1)
    cumulated = torch.softmax(logits.float() / temperature, -1).cumsum_(-1)  # (B, V)
    wanted = draws.to(logits.device, torch.float32)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, wanted, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def hf_generate(model: Any, prompts: TokenIds, sampling: Sampling, draws: torch.Tensor | None) -> TokenIds:
    """The same by transformers' ``generate_ids``, which has the better kernels on a GPU."""
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
    return [truncate_at_stop(row, sampling.stops) for row in new.tolist()]


def truncate_at_stop(ids: list[int], stops: tuple[int, ...]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]
