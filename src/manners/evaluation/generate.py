"""Answer prompts. Every sampling knob is set here: a checkpoint's own generation_config must not leak in."""

from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from transformers import GenerationConfig, PreTrainedTokenizerBase

from manners.data.encode import prompt_text
from manners.data.rows import Message
from manners.models.base import stop_tokens


@dataclass(frozen=True)
class Reply:
    text: str
    ended: bool  # by a stop token, not by the limit
    tokens: int  # without the stop token


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[list[Message]],
    max_new_tokens: int = 64,
    batch_size: int = 64,
    do_sample: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    show: str = "",
) -> list[Reply]:
    """One reply a conversation, in order; ``show`` names a progress bar. Sampling draws from ``seed`` alone."""
    prompts = tokenizer([prompt_text(c, tokenizer) for c in conversations], add_special_tokens=False)["input_ids"]
    longest = getattr(model.config, "max_position_embeddings", 2048) - max_new_tokens
    prompts = [ids[-longest:] for ids in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    stops = stop_tokens(model, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        temperature=temperature if do_sample else None,
        top_k=0 if do_sample else None,
        top_p=1.0 if do_sample else None,
        repetition_penalty=1.0,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    replies: list[Reply | None] = [None] * len(prompts)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in track(batches, description=show, disable=not show, transient=True):
            new = _continue(model, [prompts[i] for i in batch], tokenizer.pad_token_id, settings)
            for i, ids in zip(batch, new.tolist(), strict=True):
                end = next((n for n, token in enumerate(ids) if token in stops), None)
                text = str(tokenizer.decode(ids[:end], skip_special_tokens=True))
                replies[i] = Reply(text.strip(), end is not None, len(ids[:end]))
    model.train(was_training)
    return [r for r in replies if r is not None]


def _continue(model: Any, prompts: list[list[int]], pad: int, settings: GenerationConfig) -> torch.Tensor:
    """New tokens only, (B, N). Prompts are padded on the left, with the mask that says so."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    # `generate` fills gaps in its settings from the checkpoint's own: hide those for the call.
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, owner.generation_config = owner.generation_config, settings
    try:
        return model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:]
    finally:
        owner.generation_config = own
