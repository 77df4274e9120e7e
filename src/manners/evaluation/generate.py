"""Generation of replies for a list of conversations."""

from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from manners.data.tokenize import prompt_text, reply_follows
from manners.data.types import Message
from manners.models.generation import Sampling, generate_ids
from manners.models.loading import stop_token_ids
from manners.models.lora import merged_for_generation


@dataclass(frozen=True)
class Reply:
    """A decoded reply."""

    text: str
    ended: bool  # by a stop token, not by max_new_tokens
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
    progress: str = "",
    role: str = "assistant",
) -> list[Reply]:
    """Generate one turn of ``role`` for each conversation, in order; ``progress`` titles a progress bar.

    Sampling depends on ``seed`` alone, not on the batches. A user's turn also ends where the template would open the
    assistant's reply.
    """
    prompts = tokenizer([prompt_text(c, tokenizer, role) for c in conversations], add_special_tokens=False)["input_ids"]
    reply_header = reply_follows(tokenizer) if role == "user" else ""
    max_prompt_length = getattr(model.config, "max_position_embeddings", 2048) - max_new_tokens
    prompts = [ids[-max_prompt_length:] for ids in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    stop_ids = tuple(stop_token_ids(model, tokenizer))
    sampling = Sampling(max_new_tokens, stop_ids, tokenizer.pad_token_id, temperature if do_sample else 0.0)
    uniforms = torch.rand(len(prompts), max_new_tokens, generator=torch.Generator().manual_seed(seed))
    replies: list[Reply | None] = [None] * len(prompts)
    with merged_for_generation(model):
        for batch in track(batches, description=progress, disable=not progress, transient=True):
            generated = generate_ids(model, [prompts[i] for i in batch], sampling, uniforms[batch])
            for i, ids in zip(batch, generated, strict=True):
                stopped = ids[-1] in stop_ids
                text = str(tokenizer.decode(ids, skip_special_tokens=True))
                ended = stopped or bool(reply_header and reply_header in text)
                text = text.partition(reply_header)[0] if reply_header else text
                replies[i] = Reply(text.strip(), ended, len(ids) - stopped)
    return [r for r in replies if r is not None]
