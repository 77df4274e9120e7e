"""Generate the model's next turn of a conversation, and stream its text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from manners.chat.model import ChatModel
from manners.chat.session import Session, fit_context
from manners.data import tokenize
from manners.data.rendering import TemplateRefusal, text_before_reply
from manners.data.types import Message
from manners.errors import MannersError
from manners.models.generation import Sampling, stream_tokens
from manners.models.loading import max_positions, stop_token_ids


@dataclass(frozen=True)
class SamplingState:
    """Sampling parameters and random generator: a seed reproduces a conversation, and /retry draws a new reply."""

    max_new_tokens: int
    temperature: float  # 0 is greedy decoding
    generator: torch.Generator

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "SamplingState":
        """The state at the start of a chat."""
        temperature = cfg.temperature if cfg.do_sample else 0.0
        return cls(cfg.max_new_tokens, temperature, torch.Generator().manual_seed(cfg.seed))

    def draw_uniforms(self) -> torch.Tensor:
        """The random numbers of one reply, (R,) with R = ``max_new_tokens``."""
        return torch.rand(self.max_new_tokens, generator=self.generator)


def prompt_ids(session: Session, chat_model: ChatModel, max_new_tokens: int) -> tuple[list[int], int]:
    """The token ids of the prompt for the model's next turn, and the number of oldest turns dropped from it.

    ``max_new_tokens`` of the context are reserved for the reply, but at most half of it. Raises MannersError if the
    chat template rejects the conversation.
    """
    tokenizer, max_length = chat_model.tokenizer, context_length(chat_model)

    def encode(messages: list[Message]) -> list[int]:
        return tokenize.prompt_ids(messages, tokenizer, session.role)

    max_prompt = max_length - min(max_new_tokens, max_length // 2)
    try:
        messages, num_dropped = fit_context(session, lambda m: len(encode(m)), max_prompt)
        return encode(messages), num_dropped
    except TemplateRefusal as error:  # Gemma's template refuses system messages
        raise MannersError(
            f"{str(error).replace('the row', 'this conversation')} Remove the system message by /system without text, "
            "or the last turn by /undo."
        ) from None


def context_length(chat_model: ChatModel) -> int:
    """The model's maximum sequence length in tokens."""
    return max_positions(chat_model.model.config)


def stream_reply(
    chat_model: ChatModel, ids: list[int], role: str, sampling_state: SamplingState, uniforms: torch.Tensor
) -> Iterator[str]:
    """The next turn, by ``role``, after the prompt ``ids``, in chunks; sampled with ``uniforms`` (R,)."""
    tokenizer = chat_model.tokenizer
    max_new_tokens = min(sampling_state.max_new_tokens, context_length(chat_model) - len(ids))
    stop_ids = tuple(stop_token_ids(chat_model.model, tokenizer))
    sampling = Sampling(max_new_tokens, stop_ids, tokenizer.pad_token_id, sampling_state.temperature)
    stop_text = text_before_reply(tokenizer) if role == "user" else ""  # plain templates end a user turn only by this
    yield from decode_stream(stream_tokens(chat_model.model, ids, sampling, uniforms), tokenizer, stop_text)


def decode_stream(tokens: Iterable[int], tokenizer: Any, stop_text: str = "") -> Iterator[str]:
    """Decode ``tokens`` in chunks; joined they are the decoded text of all tokens, stripped, up to ``stop_text``.

    A chunk contains only text that no later token can change: no incomplete character, no beginning of ``stop_text``.
    """
    ids: list[int] = []
    shown = text = ""
    for token in tokens:
        ids.append(token)
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        if stop_text and stop_text in text:
            text = text.partition(stop_text)[0]
            break
        stable = stable_prefix(text, stop_text)
        if len(stable) > len(shown):
            yield stable[len(shown) :]
            shown = stable
    if len(text.strip()) > len(shown):
        yield text.strip()[len(shown) :]


def stable_prefix(text: str, stop_text: str) -> str:
    """The part of ``text`` that no later token can change. An incomplete character decodes as U+FFFD."""
    text = text.rstrip("\ufffd")
    lengths = range(min(len(stop_text), len(text)), 0, -1)
    overlap = next((n for n in lengths if text.endswith(stop_text[:n])), 0)
    return text[: len(text) - overlap].strip()
