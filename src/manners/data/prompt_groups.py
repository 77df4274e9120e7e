"""Several replies to one prompt in one row, so that a reward model reads the prompt once.

The row is the prompt followed by each reply. A reply attends to the prompt and to itself, and its positions continue
those of the prompt, so its hidden states equal those of a row of its own, for about half the tokens if a prompt has
five replies. For decoders whose attention takes a mask (sdpa); other models get one row for each reply.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from manners.data.batching import Batch
from manners.data.reward_examples import RewardExample, collate_examples

MAX_REPLIES_PER_ROW = 8  # attention grows with the square of a row's length


@dataclass(frozen=True)
class PromptGroup:
    """Examples with the same prompt: one item of a reward model's training set."""

    examples: list[RewardExample]
    share_prompt: bool = True  # whether the examples share one row

    @property
    def length(self) -> int:
        """Tokens of the group's row, or of the longest of its rows."""
        return self.tokens if self.share_prompt else max(len(e.input_ids) for e in self.replies)

    @property
    def tokens(self) -> int:
        """Tokens that the model reads; a shared prompt counts once."""
        shared = self.examples[0].prompt_length if self.share_prompt else 0
        return shared + sum(len(e.input_ids) - shared for e in self.replies)

    @property
    def num_targets(self) -> int:
        """Scores, or pairs, that carry loss."""
        return len(self.examples)

    @property
    def replies(self) -> list[RewardExample]:
        """Every reply of the group: each example; of pairs, each chosen one followed by its rejected one."""
        return [reply for e in self.examples for reply in ((e, e.rejected) if e.rejected else (e,))]


def group_by_prompt(examples: Sequence[RewardExample], share_prompt: bool) -> list[list[int]]:
    """Indices of examples with the same prompt, at most ``MAX_REPLIES_PER_ROW`` replies a group.

    Without ``share_prompt`` each example is a group of its own.
    """
    by_prompt: dict[tuple[int, ...], list[list[int]]] = {}
    for i, e in enumerate(examples):
        # A plain text has no prompt to share: no token id is -1, so its key is unique.
        key = tuple(e.input_ids[: e.prompt_length]) if share_prompt and e.prompt_length else (-1, i)
        groups = by_prompt.setdefault(key, [[]])
        if len(groups[-1]) * (2 if e.rejected else 1) >= MAX_REPLIES_PER_ROW:
            groups.append([])
        groups[-1].append(i)
    return [group for groups in by_prompt.values() for group in groups]


def collate_groups(groups: list[PromptGroup], pad: int, share_prompt: bool) -> Batch:
    """A right-padded row for each group, with N replies in all.

    ``input_ids`` and ``position_ids`` (B, T); ``attention_mask_4d`` (B, 1, T, T), True where attention is allowed;
    ``reply_ends`` (N, 2), the row and last token of each reply, and ``reply_spans`` (N, 4), in the order of
    ``collate_examples``; and ``targets`` (N,) or ``margins`` (N/2,). Without ``share_prompt``, or if no group has a
    second reply, as ``collate_examples``.
    """
    examples = [e for group in groups for e in group.examples]
    rows = [group.replies for group in groups]
    if not share_prompt or all(len(row) == 1 for row in rows):
        return collate_examples(examples, pad)
    length = max(group.length for group in groups)
    input_ids = torch.full((len(rows), length), pad)
    position_ids = torch.zeros((len(rows), length), dtype=torch.long)
    segment = torch.full((len(rows), length), -1)  # 0 is the prompt, 1, 2, ... the replies, -1 the padding
    spans = []
    for r, row in enumerate(rows):
        start = prompt_length = row[0].prompt_length
        input_ids[r, :start] = torch.tensor(row[0].input_ids[:start])
        position_ids[r, :start], segment[r, :start] = torch.arange(start), 0
        for k, example in enumerate(row, start=1):
            reply = torch.tensor(example.input_ids[prompt_length:])
            end = start + len(reply)
            input_ids[r, start:end], segment[r, start:end] = reply, k
            position_ids[r, start:end] = torch.arange(prompt_length, prompt_length + len(reply))
            spans.append((r, prompt_length, start, end))
            start = end
    same_segment = segment[:, :, None] == segment[:, None, :]  # (B, T, T)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    attention_mask = (same_segment | (segment[:, None, :] == 0)) & causal
    paired = examples[0].rejected is not None
    reply_spans = torch.tensor([*spans[0::2], *spans[1::2]] if paired else spans)
    batch = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "attention_mask_4d": attention_mask[:, None],
        "reply_ends": torch.stack([reply_spans[:, 0], reply_spans[:, 3] - 1], 1),
        "reply_spans": reply_spans,
        "tokens": (segment >= 0).sum(),
    }
    if paired:
        return batch | {"margins": torch.tensor([e.margin for e in examples])}
    return batch | {"targets": torch.tensor([e.target for e in examples])}
