"""Generate replies as token ids, behind one small interface: ``generate_ids(model, prompts, sampling)``.

All sampling parameters are explicit. A checkpoint's own generation_config is never used: with Qwen2.5's repetition
penalty alone, replies would come from another distribution than the log-probabilities that PPO computes (trl#1005).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache

from manners.models.kv_cache import TokenIds, left_padded, prefill
from manners.models.logprobs import logits_at
from manners.models.shared_prefixes import Reading, supports_shared_prefixes


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters, and the backend that generates."""

    max_new_tokens: int
    stop_token_ids: tuple[int, ...]  # a reply ends with the first of these, which is part of it
    pad_token_id: int
    temperature: float = 0.0  # 0 is greedy decoding
    # "native" (fastest on a CPU), "transformers", "auto" (native on a CPU, else transformers), or an engine such as
    # VLLMBackend that was made for the run.
    backend: "str | Backend" = "auto"


Backend = Callable[[Any, TokenIds, Sampling, torch.Tensor | None], TokenIds]  # the signature of ``generate_ids``


def generate_ids(model: Any, prompts: TokenIds, sampling: Sampling, uniforms: torch.Tensor | None = None) -> TokenIds:
    """Generate the token ids of a reply to each prompt, including the stop token if one was generated.

    ``uniforms`` (B, max_new_tokens) are random numbers in [0, 1) that the tokens are sampled with: a reply depends on
    its own row alone, not on the rest of the batch. Other backends than "native" seed their generators with them.
    Raises ValueError where the temperature is above 0 and there are none.
    """
    backend = sampling.backend
    if backend == "auto":
        backend = "native" if model.device.type == "cpu" else "transformers"
    generate = (
        {"native": native_generate, "transformers": hf_generate}[backend] if isinstance(backend, str) else backend
    )
    require_uniforms(sampling, uniforms)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        replies = generate(model, prompts, sampling, uniforms)
    model.train(was_training)
    return replies


def stream_tokens(
    model: Any, prompt: list[int], sampling: Sampling, uniforms: torch.Tensor | None = None
) -> Iterator[int]:
    """Yield the token ids of one reply as they are generated, always by the native backend.

    ``uniforms`` (max_new_tokens,) are as in ``generate_ids``. The model must be in eval mode.
    """
    require_uniforms(sampling, uniforms)
    for _, tokens in decode_steps(model, [prompt], sampling, None if uniforms is None else uniforms[None]):
        yield tokens[0]


def require_uniforms(sampling: Sampling, uniforms: torch.Tensor | None) -> None:
    """Raise ValueError where sampling would need ``uniforms`` (B, max_new_tokens) and has none."""
    if sampling.temperature > 0 and uniforms is None:
        raise ValueError("sampling with temperature > 0 needs uniforms")


# --- The native backend ---


def native_generate(model: Any, prompts: TokenIds, sampling: Sampling, uniforms: torch.Tensor | None) -> TokenIds:
    """Generate by ``decode_steps``; ``uniforms`` are (B, max_new_tokens)."""
    replies: TokenIds = [[] for _ in prompts]
    for rows, tokens in decode_steps(model, prompts, sampling, uniforms):
        for row, token in zip(rows, tokens, strict=True):
            replies[row].append(token)
    return replies


@torch.no_grad()
def decode_steps(
    model: Any, prompts: TokenIds, sampling: Sampling, uniforms: torch.Tensor | None
) -> Iterator[tuple[list[int], list[int]]]:
    """Decode token by token: yield the prompt numbers of the unfinished rows, and the next token of each.

    ``uniforms`` are (B, max_new_tokens). Finished rows are dropped, so the batch shrinks as replies end.
    """
    device, max_new_tokens = model.device, sampling.max_new_tokens
    read, shares = partial(prompt_logits, model), supports_shared_prefixes(model)
    cache, logits, mask = prefill(prompts, sampling.pad_token_id, max_new_tokens, device, read, shares)
    positions = mask.sum(1, keepdim=True) - 1
    stop_token_ids = torch.tensor(sampling.stop_token_ids, device=device)
    active_rows = torch.arange(len(prompts), device=device)
    for step in range(max_new_tokens):
        step_uniforms = None if uniforms is None or sampling.temperature == 0 else uniforms[active_rows.cpu(), step]
        tokens = sample_token(logits, sampling.temperature, step_uniforms)
        yield active_rows.tolist(), tokens.tolist()
        unfinished = ~torch.isin(tokens, stop_token_ids)
        if step + 1 == max_new_tokens or not unfinished.any():
            break
        if not unfinished.all():
            kept = compact_rows(unfinished)
            cache.batch_select_indices(kept)
            active_rows, tokens, mask, positions = active_rows[kept], tokens[kept], mask[kept], positions[kept]
        positions, mask = positions + 1, torch.cat([mask, mask.new_ones(len(active_rows), 1)], 1)
        logits = next_logits(model, tokens[:, None], mask, positions, cache)


def prompt_logits(model: Any, reading: Reading, cache: Cache) -> torch.Tensor:
    """Read prompts into an empty cache and return the logits (B, V) after each of them."""
    if len(reading.positions) == 1:  # one prompt, without padding
        output = model(input_ids=reading.ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1]  # type: ignore[no-any-return]
    return logits_at(model, reading, cache)[0]


def next_logits(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
) -> torch.Tensor:
    """Append the tokens ``ids`` (B, t) to the cache and return the logits (B, V) after the last of them.

    ``mask`` (B, T) covers all tokens, ``positions`` (B, t) the new ones.
    """
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1]  # type: ignore[no-any-return]


def compact_rows(unfinished: torch.Tensor) -> torch.Tensor:
    """Order the unfinished rows (B,) → (b,) so that as few as possible move.

    Rows among the first b keep their place; the others fill the places of finished rows.
    """
    kept = unfinished.nonzero()[:, 0]
    order = torch.arange(len(kept), device=kept.device)
    order[~unfinished[: len(kept)]] = kept[kept >= len(kept)]
    return order


def sample_token(logits: torch.Tensor, temperature: float, uniforms: torch.Tensor | None) -> torch.Tensor:
    """Pick a token (B,) by ``logits`` (B, V): the argmax, or a sample by inverting the CDF at ``uniforms`` (B,).

    On a CPU this is several times faster than ``torch.multinomial``, and has no hidden random state.
    """
    if temperature == 0 or uniforms is None:
        return logits.argmax(-1)
    cdf = torch.softmax(logits.float() / temperature, -1).cumsum_(-1)  # (B, V)
    thresholds = uniforms.to(logits.device, torch.float32)[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, thresholds, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


# --- The transformers backend ---


def generation_config(sampling: Sampling) -> GenerationConfig:
    """Return ``sampling`` as transformers has it, without the limit on the length."""
    do_sample = sampling.temperature > 0
    return GenerationConfig(
        do_sample=do_sample,
        temperature=sampling.temperature if do_sample else None,
        top_k=0 if do_sample else None,
        top_p=1.0 if do_sample else None,
        repetition_penalty=1.0,
        eos_token_id=list(sampling.stop_token_ids),
        pad_token_id=sampling.pad_token_id,
        use_cache=True,
    )


def hf_generate(model: Any, prompts: TokenIds, sampling: Sampling, uniforms: torch.Tensor | None) -> TokenIds:
    """Generate by transformers' ``generate``, which is faster on a GPU; ``uniforms`` (B, max_new_tokens) seed it."""
    ids, mask = left_padded(prompts, sampling.pad_token_id, model.device)
    config = generation_config(sampling)
    config.max_new_tokens = sampling.max_new_tokens
    # `generate` takes what its config leaves out from the checkpoint's own: replace that one for the call.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    checkpoint_config, base.generation_config = base.generation_config, config
    try:
        with torch.random.fork_rng():
            if config.do_sample and uniforms is not None:
                torch.manual_seed(int(uniforms.flatten()[0].double() * 2**53))
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    finally:
        base.generation_config = checkpoint_config
    return [truncate_at_stop(row, sampling.stop_token_ids) for row in output[:, ids.shape[1] :].tolist()]


def truncate_at_stop(ids: list[int], stop_token_ids: tuple[int, ...]) -> list[int]:
    """Cut ``ids`` after the first stop token."""
    end = next((i for i, token in enumerate(ids) if token in stop_token_ids), len(ids))
    return ids[: end + 1]
