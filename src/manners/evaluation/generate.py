"""Generate replies to conversations."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from manners.data.rendering import text_before_reply
from manners.data.tokenize import prompt_ids
from manners.data.types import Message
from manners.models.generation import Sampling, generate_ids
from manners.models.loading import max_positions, stop_token_ids
from manners.models.lora import merged_for_generation
from manners.runtime.progress import progress


@dataclass(frozen=True)
class Reply:
    """A generated turn."""

    text: str
    has_eos: bool  # whether a stop token ended it, not the limit
    prompt_ids: list[int]
    ids: list[int]  # of the reply, with the stop token


def cut_prompts_line(conversations: list[list[Message]], tokenizer: Any, role: str, max_length: int, why: str) -> str:
    """A line on the prompts that are longer than ``max_length`` tokens; empty where none is."""
    cut = sum(len(prompt_ids(c, tokenizer, role)) > max_length for c in conversations)
    return f"{cut} of {len(conversations)} prompts are cut to their last {max_length} tokens ({why})" if cut else ""


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

    Sampling depends on ``seed`` alone. A user's turn also ends where the template would open the reply to it.
    """
    max_prompt_length = max_positions(model.config) - max_new_tokens
    prompts = [prompt_ids(c, tokenizer, role, max_prompt_length) for c in conversations]
    reply_opening = text_before_reply(tokenizer) if role == "user" else ""
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    stops = tuple(stop_token_ids(model, tokenizer))
    sampling = Sampling(max_new_tokens, stops, tokenizer.pad_token_id, temperature if do_sample else 0.0)
    uniforms = torch.rand(len(prompts), max_new_tokens, generator=torch.Generator().manual_seed(seed))
    replies: list[Reply | None] = [None] * len(prompts)
    with merged_for_generation(model), progress(len(batches), show, enabled=bool(show)) as bar:
        for number, batch in enumerate(batches, start=1):
            generated = generate_ids(model, [prompts[i] for i in batch], sampling, uniforms[batch])
            for i, ids in zip(batch, generated, strict=True):
                text = str(tokenizer.decode(ids, skip_special_tokens=True))
                has_eos = ids[-1] in stops or bool(reply_opening and reply_opening in text)
                text = text.partition(reply_opening)[0] if reply_opening else text
                replies[i] = Reply(text.strip(), has_eos, prompts[i], ids)
            bar.update(number)
    return [reply for reply in replies if reply is not None]
