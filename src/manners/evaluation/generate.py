"""Answer prompts."""

from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from manners.data.tokenize import prompt_text, text_before_reply
from manners.data.types import Message
from manners.models.generation import Sampling
from manners.models.generation import generate_ids as continue_tokens
from manners.models.loading import stop_token_ids
from manners.models.lora import merged_for_generation


@dataclass(frozen=True)
class Reply:
    text: str
    ended: bool  # by a stop token, not by the limit
    tokens: int  # without the stop token


def generate_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[list[Message]],
    max_new_tokens: int = 64,
    batch_size: int = 64,
    do_sample: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    show: str = "",
    role: str = "assistant",
) -> list[Reply]:
    """One turn by ``role`` for each conversation, in order; ``show`` names a progress bar.

    Sampling draws from ``seed`` alone. A user's turn also ends where the template would open the reply to it.
    """
    prompts = tokenizer([prompt_text(c, tokenizer, role) for c in conversations], add_special_tokens=False)["input_ids"]
    over = text_before_reply(tokenizer) if role == "user" else ""
    longest = getattr(model.config, "max_position_embeddings", 2048) - max_new_tokens
    prompts = [ids[-longest:] for ids in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    stops = tuple(stop_token_ids(model, tokenizer))
    sampling = Sampling(max_new_tokens, stops, tokenizer.pad_token_id, temperature if do_sample else 0.0)
    uniforms = torch.rand(len(prompts), max_new_tokens, generator=torch.Generator().manual_seed(seed))
    replies: list[Reply | None] = [None] * len(prompts)
    with merged_for_generation(model):
        for batch in track(batches, description=show, disable=not show, transient=True):
            new = continue_tokens(model, [prompts[i] for i in batch], sampling, uniforms[batch])
            for i, ids in zip(batch, new, strict=True):
                stopped = ids[-1] in stops
                text = str(tokenizer.decode(ids, skip_special_tokens=True))
                ended = stopped or bool(over and over in text)
                text = text.partition(over)[0] if over else text
                replies[i] = Reply(text.strip(), ended, len(ids) - stopped)
    return [r for r in replies if r is not None]
