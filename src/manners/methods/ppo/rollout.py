"""What the policy does: replies to a batch of prompts, and what policy, reference and critic make of each token."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from manners.data.batching import length_batches
from manners.data.tokenize import prompt_text
from manners.data.types import Prompt
from manners.models.generation import Sampling, generate_ids
from manners.models.lora import merged_for_generation
from manners.models.policy import Policy


@dataclass
class Rollout:
    """B replies of up to R tokens. Numbers are (B, R), zero where ``mask`` is false; the stop token is inside it."""

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    reply_ids: list[list[int]]
    texts: list[str]
    ended: torch.Tensor  # (B,) bool: by a stop token, not by the limit
    mask: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor

    @property
    def lengths(self) -> list[int]:
        """Tokens of prompt and reply together."""
        return [len(p) + len(r) for p, r in zip(self.prompt_ids, self.reply_ids, strict=True)]


@dataclass
class MicroBatch:
    """Some rows of a rollout, ready for the model."""

    rows: list[int]
    ids: torch.Tensor  # (b, T), right-padded
    chosen: torch.Tensor  # (b, T-1): whether position t predicts a token of the reply


def encode_prompts(prompts: list[Prompt], tokenizer: PreTrainedTokenizerBase, longest: int) -> list[list[int]]:
    """Token ids of each conversation and the opening of its reply; the oldest tokens give way to ``longest``."""
    texts = [prompt_text(p.messages, tokenizer) for p in prompts]
    return [ids[-longest:] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def rollout(
    actor: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    prompt_ids: list[list[int]],
    sampling: Sampling,
    draws: torch.Tensor | None,
    micro_batch_tokens: int,
) -> Rollout:
    """Sample a reply to each prompt, then read them all once more for the numbers that PPO needs.

    ``draws`` (B, response_length) decide what is sampled; a temperature of 0 needs none, and counts as 1 in the
    log-probabilities. These are computed by the very pass that training uses, and not taken from sampling, so
    that the ratio of the first epoch is 1.
    """
    with merged_for_generation(actor.model), actor.cast():
        reply_ids = generate_ids(actor.model, prompt_ids, sampling, draws)
    ended = torch.tensor([ids[-1] in sampling.stops for ids in reply_ids])
    width = max(map(len, reply_ids))
    mask = torch.tensor([[i < len(ids) for i in range(width)] for ids in reply_ids])
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in reply_ids]
    zeros = [torch.zeros(mask.shape) for _ in range(4)]
    found = Rollout(prompts, prompt_ids, reply_ids, texts, ended, mask, *zeros)
    temperature = sampling.temperature or 1.0  # greedy replies are read as the policy's own, not as the only ones
    with torch.no_grad():
        for part in micro_batches(found, list(range(len(prompts))), micro_batch_tokens, sampling.pad):
            ids, chosen = part.ids.to(actor.model.device), part.chosen.to(actor.model.device)
            judged = actor.judge(ids, chosen, temperature)
            scatter_tokens(found.logprobs, judged.logprobs, part.rows, mask)
            scatter_tokens(found.values, judged.values, part.rows, mask)
            scatter_tokens(found.entropy, judged.entropy, part.rows, mask)
            scatter_tokens(found.ref_logprobs, actor.reference_logprobs(ids, chosen, temperature), part.rows, mask)
    return found


def scatter_tokens(into: torch.Tensor, flat: torch.Tensor, rows: list[int], mask: torch.Tensor) -> None:
    """Lay the (N,) numbers of the rows' tokens, in their order, into a (B, R) table."""
    part = into[rows]
    part[mask[rows]] = flat.float().cpu()
    into[rows] = part


def micro_batches(rollout: Rollout, rows: list[int], tokens: int, pad: int) -> Iterator[MicroBatch]:
    """The rows in batches of like length, of at most ``tokens`` slots each (one row at least)."""
    lengths = rollout.lengths
    for batch in length_batches([lengths[r] for r in rows], tokens):
        yield collate_rows(rollout, [rows[i] for i in batch], pad)


def collate_rows(rollout: Rollout, rows: list[int], pad: int) -> MicroBatch:
    lengths = rollout.lengths
    width = max(lengths[r] for r in rows)
    ids = torch.full((len(rows), width), pad)
    chosen = torch.zeros((len(rows), width - 1), dtype=torch.bool)
    for i, r in enumerate(rows):
        prompt, reply = rollout.prompt_ids[r], rollout.reply_ids[r]
        ids[i, : lengths[r]] = torch.tensor(prompt + reply)
        chosen[i, len(prompt) - 1 : lengths[r] - 1] = True
    return MicroBatch(rows, ids, chosen)


def sample_table(rollout: Rollout, parts: dict[str, list[float]], kl: torch.Tensor, count: int) -> list[dict[str, Any]]:
    """The first ``count`` replies as records for a table."""
    return [
        {
            "prompt": rollout.prompts[i].messages[-1]["content"],
            "reply": rollout.texts[i],
            **{name: round(values[i], 3) for name, values in parts.items()},
            "kl": round(float(kl[i]), 3),
            "tokens": len(rollout.reply_ids[i]),
            "ended": bool(rollout.ended[i]),
        }
        for i in range(min(count, len(rollout.texts)))
    ]
