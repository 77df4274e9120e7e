"""Several replies to one prompt in one row, so that a reward model reads the prompt once.

The row is the prompt and then each reply. A reply sees the prompt and itself, and its positions go on where the
prompt's end: so its hidden states are those of a row of its own, for about half the tokens where a prompt has five
replies. For decoders whose attention takes a mask (sdpa); others get a row for each reply.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from manners.data.batching import Batch
from manners.data.reward_examples import RewardExample, collate_examples

MAX_REPLIES_PER_ROW = 8  # replies in a row: attention grows with the square of its length


@dataclass(frozen=True)
class PromptGroup:
    """Passages that begin with the same prompt: what a reward model learns from one row of the data."""

    passages: list[RewardExample]
    share: bool = True  # whether they stand in one row

    @property
    def length(self) -> int:
        """Tokens of their row, or of the longest of their rows."""
        return self.tokens if self.share else max(len(p.input_ids) for p in group_rows(self))

    @property
    def tokens(self) -> int:
        prompt = self.passages[0].prompt if self.share else 0  # what they have in common is read once
        return prompt + sum(len(p.input_ids) - prompt for p in group_rows(self))

    @property
    def num_targets(self) -> int:
        return len(self.passages)


def group_rows(family: PromptGroup) -> list[RewardExample]:
    """The replies of its row; of pairs, each chosen one and then the rejected."""
    return [p for one in family.passages for p in ((one, one.rejected) if one.rejected else (one,))]


def group_by_prompt(passages: Sequence[RewardExample], share: bool) -> list[list[int]]:
    """Indices of the examples that share a prompt, at most ``MAX_REPLIES_PER_ROW`` each; without ``share``, each alone."""
    found: dict[tuple[int, ...], list[list[int]]] = {}
    for i, p in enumerate(passages):
        key = tuple(p.input_ids[: p.prompt]) if share and p.prompt else (-1, i)  # plain texts have no prompt to share
        groups = found.setdefault(key, [[]])
        if len(groups[-1]) * (2 if p.rejected else 1) >= MAX_REPLIES_PER_ROW:
            groups.append([])
        groups[-1].append(i)
    return [group for groups in found.values() for group in groups]


def collate_groups(found: list[PromptGroup], pad: int, share: bool) -> Batch:
    """A row for each family, right-padded: ``input_ids``, ``position_ids`` (R, T), ``allowed`` (R, 1, T, T), and in
    ``ends`` (N, 2) the row and the last token of each reply, as ``collate_examples`` would have them.
    """
    flat = [p for family in found for p in family.passages]
    rows = [group_rows(family) for family in found]
    if not share or all(len(row) == 1 for row in rows):
        return collate_examples(flat, pad)
    length = max(family.length for family in found)
    ids = torch.full((len(rows), length), pad)
    positions = torch.zeros((len(rows), length), dtype=torch.long)
    kin = torch.full((len(rows), length), -1)  # 0 the prompt, 1, 2, ... the replies, -1 the padding
    ends = []
    for r, row in enumerate(rows):
        start = prompt = row[0].prompt
        ids[r, :start] = torch.tensor(row[0].input_ids[:start])
        positions[r, :start], kin[r, :start] = torch.arange(start), 0
        for k, passage in enumerate(row, start=1):
            reply = torch.tensor(passage.input_ids[prompt:])
            end = start + len(reply)
            ids[r, start:end], kin[r, start:end] = reply, k
            positions[r, start:end] = torch.arange(prompt, prompt + len(reply))
            ends.append((r, end - 1))
            start = end
    same = kin[:, :, None] == kin[:, None, :]  # (R, T, T)
    allowed = (same | (kin[:, None, :] == 0)) & torch.ones(length, length, dtype=torch.bool).tril()
    paired = flat[0].rejected is not None
    last = torch.tensor([*ends[0::2], *ends[1::2]] if paired else ends)  # (N, 2)
    batch = {"input_ids": ids, "position_ids": positions, "allowed": allowed[:, None], "ends": last}
    batch |= {"tokens": (kin >= 0).sum()}
    if paired:
        return batch | {"margins": torch.tensor([p.margin for p in flat])}
    return batch | {"targets": torch.tensor([p.target for p in flat])}
