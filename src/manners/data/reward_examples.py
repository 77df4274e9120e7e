"""Scored replies and pairs of replies → token ids for a reward model.

A decoder reads the conversation as its chat template renders it, up to and with the stop token of the reply. An
encoder reads prompt and reply as a pair of segments. What is too long loses the oldest of the prompt, never the
reply; only a reply that is longer than the limit by itself loses its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from manners.data.batching import Batch
from manners.data.tokenize import UNLIMITED, split_prompt_reply, tokenize, with_reply
from manners.data.types import Message, PreferencePair, ScoredReply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RewardExample:
    """What a reward model reads, and what it should say: a score, or that it is better than ``rejected``."""

    input_ids: list[int]  # (T,)
    segments: list[int] | None = None  # (T,) 0 for the prompt, 1 for the reply: encoders only
    num_truncated: int = 0  # tokens that truncation took away
    prompt: int = 0  # tokens before the reply, which other replies may share: decoders only
    target: float = 0.0  # the score, standardised
    rejected: "RewardExample | None" = None
    margin: float = 0.0  # by how much, in Bradley-Terry's units

    @property
    def length(self) -> int:
        return max(len(self.input_ids), len(self.rejected.input_ids) if self.rejected else 0)

    @property
    def num_targets(self) -> int:
        return 1


def reward_examples(
    replies: Sequence[tuple[list[Message], str]], tokenizer: "PreTrainedTokenizerBase", max_length: int, decoder: bool
) -> list[RewardExample]:
    """One Passage for each (conversation, reply); an empty conversation leaves plain text, as an opening does."""
    if not replies:
        return []
    chats = [with_reply(messages, reply).messages for messages, reply in replies]
    replies = [(chat[:-1], chat[-1]["content"]) for chat in chats]
    return (decoder_examples if decoder else encoder_examples)(replies, tokenizer, max_length)


def scored_examples(
    rows: Sequence[ScoredReply],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    decoder: bool,
    mean: float,
    scale: float,
) -> list[RewardExample]:
    """Passages whose targets are ``(score - mean) / scale``."""
    read = reward_examples([(r.messages, r.reply) for r in rows], tokenizer, max_length, decoder)
    return [replace(p, target=(r.score - mean) / scale) for p, r in zip(read, rows, strict=True)]


def pair_examples(
    rows: Sequence[PreferencePair], tokenizer: "PreTrainedTokenizerBase", max_length: int, decoder: bool
) -> list[RewardExample]:
    chosen = reward_examples([(r.messages, r.chosen) for r in rows], tokenizer, max_length, decoder)
    rejected = reward_examples([(r.messages, r.rejected) for r in rows], tokenizer, max_length, decoder)
    return [
        replace(c, num_truncated=c.num_truncated + r.num_truncated, rejected=r, margin=row.margin)
        for c, r, row in zip(chosen, rejected, rows, strict=True)
    ]


def decoder_examples(
    replies: Sequence[tuple[list[Message], str]], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[RewardExample]:
    found = []
    for example in tokenize((with_reply(*r) for r in replies), tokenizer, "assistant", UNLIMITED):
        prompt, reply = split_prompt_reply(example)
        too_many = max(len(prompt) + len(reply) - max_length, 0)
        kept = prompt[too_many:]
        found.append(RewardExample((kept + reply)[:max_length], num_truncated=too_many, prompt=len(kept)))
    return found


def encoder_examples(
    replies: Sequence[tuple[list[Message], str]], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[RewardExample]:
    """``[CLS] prompt [SEP] reply [SEP]``, or ``[CLS] text [SEP]``, whatever the tokenizer's own marks are.

    The tokenizer cuts, between tokens: a text cut within a word and read again would have other tokens.
    """
    found, side = [], tokenizer.truncation_side
    for messages, reply in replies:
        prompt = "\n".join(m["content"] for m in messages)
        asked, answered = (len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (prompt, reply))
        room = max_length - answered - tokenizer.num_special_tokens_to_add(pair=bool(messages))  # for the prompt
        tokenizer.truncation_side = "left" if room > 0 else "right"
        texts = ([prompt if room > 0 else ""], [reply]) if messages else ([reply],)
        which = "only_second" if messages and room <= 0 else "only_first"
        read: Any = tokenizer(*texts, truncation=which, max_length=max_length)  # lists: it would drop a lone "" unseen
        ids = read["input_ids"][0]
        segments = read["token_type_ids"][0] if "token_type_ids" in read else [0] * len(ids)
        found.append(RewardExample(ids, segments, max(asked - room, 0)))
    tokenizer.truncation_side = side
    return found


def collate_examples(passages: list[RewardExample], pad: int) -> Batch:
    """``input_ids``, ``mask`` and for encoders ``segments``: (B, T) each, right-padded; ``targets`` (B,).

    Of pairs, the rejected follow the chosen: 2B rows, and ``margins`` (B,) in place of ``targets``.
    """
    rejected = [p.rejected for p in passages if p.rejected]
    rows = [*passages, *rejected]
    length = max(len(p.input_ids) for p in rows)
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    segments = torch.zeros((len(rows), length), dtype=torch.long)
    for i, p in enumerate(rows):
        n = len(p.input_ids)
        ids[i, :n], mask[i, :n] = torch.tensor(p.input_ids), 1
        if p.segments:
            segments[i, :n] = torch.tensor(p.segments)
    batch = {"input_ids": ids, "mask": mask, "tokens": mask.sum()}
    batch |= {"segments": segments} if rows[0].segments else {}
    if rejected:
        return batch | {"margins": torch.tensor([p.margin for p in passages])}
    return batch | {"targets": torch.tensor([p.target for p in passages])}
