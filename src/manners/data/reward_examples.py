"""Scored replies and preference pairs → token ids for a reward model.

A decoder reads the conversation as its chat template renders it, up to and including the stop token of the reply. An
encoder reads prompt and reply as a pair of segments. Truncation shortens the prompt and keeps the reply; only a reply
that is longer than the limit by itself loses its end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from manners.data.batching import Batch
from manners.data.tokenize import bos_ids, keep_end, shorten, split_replies, with_reply
from manners.data.types import Message, PreferencePair, ScoredReply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RewardExample:
    """The input of a reward model with its target: a score, or being better than ``rejected``."""

    input_ids: list[int]  # (T,)
    token_type_ids: list[int] | None = None  # (T,) 0 for the prompt, 1 for the reply: encoders only
    num_truncated: int = 0  # tokens dropped by truncation
    prompt_length: int = 0  # tokens before the reply, which other replies may share: decoders only
    target: float = 0.0  # the standardized score
    rejected: "RewardExample | None" = None
    margin: float = 0.0  # added to the difference that the Bradley-Terry loss asks for

    @property
    def length(self) -> int:
        """Tokens of the row, or of the longer row of a pair."""
        return max(len(self.input_ids), len(self.rejected.input_ids) if self.rejected else 0)

    @property
    def num_targets(self) -> int:
        """An example, or a pair, is one term of the loss."""
        return 1


def reward_examples(
    replies: Sequence[tuple[list[Message], str]], tokenizer: "PreTrainedTokenizerBase", max_length: int, decoder: bool
) -> list[RewardExample]:
    """One example for each (messages, reply), in order.

    Without messages, or after the beginning of a plain text, the reply is read as plain text.
    """
    if not replies:
        return []
    conversations = [with_reply(messages, reply).messages for messages, reply in replies]
    replies = [(messages[:-1], messages[-1]["content"]) for messages in conversations]
    return (decoder_examples if decoder else encoder_examples)(replies, tokenizer, max_length)


def scored_examples(
    rows: Sequence[ScoredReply],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    decoder: bool,
    to_target: Callable[[float], float],
) -> list[RewardExample]:
    """One example for each scored reply; its target is ``to_target`` of the score."""
    examples = reward_examples([(r.messages, r.reply) for r in rows], tokenizer, max_length, decoder)
    return [replace(e, target=to_target(r.score)) for e, r in zip(examples, rows, strict=True)]


def pair_examples(
    rows: Sequence[PreferencePair], tokenizer: "PreTrainedTokenizerBase", max_length: int, decoder: bool
) -> list[RewardExample]:
    """One example for each pair: the chosen reply, with the rejected one and the margin."""
    chosen = reward_examples([(r.messages, r.chosen) for r in rows], tokenizer, max_length, decoder)
    rejected = reward_examples([(r.messages, r.rejected) for r in rows], tokenizer, max_length, decoder)
    return [
        replace(c, num_truncated=c.num_truncated + r.num_truncated, rejected=r, margin=row.margin)
        for c, r, row in zip(chosen, rejected, rows, strict=True)
    ]


def decoder_examples(
    replies: Sequence[tuple[list[Message], str]], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[RewardExample]:
    """Each conversation as the chat template renders it, up to and including the reply's stop token."""
    encoded = split_replies([with_reply(*r) for r in replies], tokenizer)
    examples, num_bos = [], len(bos_ids(tokenizer))
    for (messages, text), (prompt, reply) in zip(replies, encoded, strict=True):
        num_tokens, room = len(prompt) + len(reply), max(max_length - len(reply), num_bos)
        if messages and len(prompt) > room > num_bos:
            [(prompt, reply)] = split_replies([with_reply(shorten(messages, room, tokenizer), text)], tokenizer)
        prompt = keep_end(prompt, room, num_bos)
        input_ids = (prompt + reply)[:max_length]
        shared = len(prompt) if messages else 0  # not even BOS: plain texts have no prompt in common
        examples.append(RewardExample(input_ids, num_truncated=num_tokens - len(input_ids), prompt_length=shared))
    return examples


def encoder_examples(
    replies: Sequence[tuple[list[Message], str]], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[RewardExample]:
    """``[CLS] prompt [SEP] reply [SEP]``, or ``[CLS] text [SEP]``, with the tokenizer's own special tokens.

    The tokenizer truncates, between tokens: a text cut within a word and tokenized again would have other tokens.
    ``split_special_tokens``: a "[SEP]" in the text is text.
    """
    examples, truncation_side = [], tokenizer.truncation_side
    for messages, reply in replies:
        prompt = "\n".join(m["content"] for m in messages)
        prompt_length, reply_length = (
            len(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
            for text in (prompt, reply)
        )
        max_prompt = max_length - reply_length - tokenizer.num_special_tokens_to_add(pair=bool(messages))
        tokenizer.truncation_side = "left" if max_prompt > 0 else "right"
        texts = ([prompt if max_prompt > 0 else ""], [reply]) if messages else ([reply],)
        truncation = "only_second" if messages and max_prompt <= 0 else "only_first"
        # Lists, since the tokenizer would silently drop a prompt of "" that is not in a list.
        encoded: Any = tokenizer(*texts, truncation=truncation, max_length=max_length, split_special_tokens=True)
        input_ids = encoded["input_ids"][0]
        token_type_ids = encoded["token_type_ids"][0] if "token_type_ids" in encoded else [0] * len(input_ids)
        examples.append(RewardExample(input_ids, token_type_ids, max(prompt_length - max_prompt, 0)))
    tokenizer.truncation_side = truncation_side
    return examples


def collate_examples(examples: list[RewardExample], pad: int) -> Batch:
    """``input_ids``, ``attention_mask`` and for encoders ``token_type_ids``: (B, T), right-padded; ``targets`` (B,).

    ``reply_spans`` (B, 4): the row of each reply, the tokens of its prompt, its first token, the one behind its last.
    For pairs, the rejected replies follow the chosen ones, (2B, T), with ``margins`` (B,) instead of ``targets``.
    """
    rejected = [e.rejected for e in examples if e.rejected]
    rows = [*examples, *rejected]
    shape = (len(rows), max(len(row.input_ids) for row in rows))
    input_ids = torch.full(shape, pad)
    attention_mask, token_type_ids = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for i, row in enumerate(rows):
        n = len(row.input_ids)
        input_ids[i, :n], attention_mask[i, :n] = torch.tensor(row.input_ids), 1
        if row.token_type_ids:
            token_type_ids[i, :n] = torch.tensor(row.token_type_ids)
    spans = [(i, row.prompt_length, row.prompt_length, len(row.input_ids)) for i, row in enumerate(rows)]
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "tokens": attention_mask.sum()}
    batch["reply_spans"] = torch.tensor(spans)
    batch |= {"token_type_ids": token_type_ids} if rows[0].token_type_ids else {}
    if rejected:
        return batch | {"margins": torch.tensor([e.margin for e in examples])}
    return batch | {"targets": torch.tensor([e.target for e in examples])}
