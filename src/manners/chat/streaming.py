"""From a conversation to the model's next turn, piece by piece."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from omegaconf import DictConfig

from manners.chat.model import ChatModel
from manners.chat.session import Session, fit_context
from manners.data.tokenize import prompt_text, text_before_reply
from manners.data.types import Message
from manners.errors import MannersError
from manners.models.generation import Sampling, stream_tokens
from manners.models.loading import stop_token_ids


@dataclass(frozen=True)
class SamplingState:
    """How replies are drawn: the same seed gives the same conversation, and /retry another reply."""

    max_new_tokens: int
    temperature: float  # 0 takes the likeliest token
    generator: torch.Generator

    @classmethod
    def of(cls, cfg: DictConfig) -> "SamplingState":
        temperature = cfg.temperature if cfg.do_sample else 0.0
        return cls(cfg.max_new_tokens, temperature, torch.Generator().manual_seed(cfg.seed))

    def draw(self) -> torch.Tensor:
        return torch.rand(self.max_new_tokens, generator=self.generator)


def prompt_ids(session: Session, voice: ChatModel, max_new_tokens: int) -> tuple[list[int], int]:
    """The token ids that the model is given to go on from, and how many of the oldest turns they leave out.

    A reply has room for ``max_new_tokens``, but for no more than half of what the model can read.
    """
    tokenizer, reads = voice.tokenizer, context_length(voice)

    def encoded(messages: list[Message]) -> list[int]:
        text = prompt_text(messages, tokenizer, session.role)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    try:
        messages, left_out = fit_context(session, lambda m: len(encoded(m)), reads - min(max_new_tokens, reads // 2))
        return encoded(messages), left_out
    except TemplateError as error:  # Gemma's refuses system messages
        raise MannersError(
            f"the model's chat template refuses this conversation: {error}. /system alone takes the system message "
            "away, /undo the last turn."
        ) from None


def context_length(voice: ChatModel) -> int:
    """The longest text that the model was built for, in tokens."""
    return int(getattr(voice.model.config, "max_position_embeddings", 2048))


def stream_reply(
    voice: ChatModel, ids: list[int], role: str, chance: SamplingState, uniforms: torch.Tensor
) -> Iterator[str]:
    """The next turn, by ``role``, after the prompt ``ids``, in pieces. At the scale that the voice is set to."""
    tokenizer = voice.tokenizer
    limit = min(chance.max_new_tokens, context_length(voice) - len(ids))
    stops = tuple(stop_token_ids(voice.model, tokenizer))
    sampling = Sampling(limit, stops, tokenizer.pad_token_id, chance.temperature)
    end = text_before_reply(tokenizer) if role == "user" else ""  # a plain template ends a user's turn in no other way
    yield from text_pieces(stream_tokens(voice.model, ids, sampling, uniforms), tokenizer, end)


def text_pieces(tokens: Iterable[int], tokenizer: Any, end: str = "") -> Iterator[str]:
    """The text of ``tokens`` as it comes; joined, what ``decode`` makes of all of them, stripped and up to ``end``.

    Only what no later token can change is shown: no half of a character, and no beginning of ``end``.
    """
    ids: list[int] = []
    shown = text = ""
    for token in tokens:
        ids.append(token)
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        if end and end in text:
            text = text.partition(end)[0]
            break
        certain = stable_prefix(text, end)
        if len(certain) > len(shown):
            yield certain[len(shown) :]
            shown = certain
    if len(text.strip()) > len(shown):
        yield text.strip()[len(shown) :]


def stable_prefix(text: str, end: str) -> str:
    """What of ``text`` stays whatever follows. A character whose bytes have not all come decodes as U+FFFD."""
    text = text.rstrip("\ufffd")
    begun = next((n for n in range(min(len(end), len(text)), 0, -1) if text.endswith(end[:n])), 0)
    return text[: len(text) - begun].strip()
