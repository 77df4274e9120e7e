"""Rollouts: replies sampled from the policy, and what policy, reference and critic give each of their tokens."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from manners.data.batching import length_batches
from manners.data.tokenize import prompt_ids
from manners.data.types import Prompt
from manners.models.generation import Sampling, generate_ids
from manners.models.lora import merged_for_generation
from manners.models.policy import Policy


@dataclass
class Rollout:
    """B replies of up to R tokens. Tensors are (B, R) and zero where ``mask`` is false; the stop token is inside it."""

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    reply_ids: list[list[int]]
    texts: list[str]
    has_eos: torch.Tensor  # (B,) bool: whether a stop token ended the reply, not the limit
    mask: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor

    @property
    def lengths(self) -> list[int]:
        """Tokens of prompt and reply, for each of the B rows."""
        return [len(p) + len(r) for p, r in zip(self.prompt_ids, self.reply_ids, strict=True)]


@dataclass
class MicroBatch:
    """Some rows of a rollout, right-padded for a forward pass."""

    rows: list[int]
    ids: torch.Tensor  # (b, T)
    response_mask: torch.Tensor  # (b, T-1): whether position t predicts a token of the reply


def encode_prompts(prompts: list[Prompt], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[int]]:
    """Token ids of each conversation with the opening of its reply; one beyond ``max_length`` is shortened."""
    return [prompt_ids(p.messages, tokenizer, max_length=max_length) for p in prompts]


def sample_replies(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    prompt_ids: list[list[int]],
    sampling: Sampling,
    uniforms: torch.Tensor | None,
) -> Rollout:
    """Sample a reply to each prompt. What ``run_networks`` gives each token is still zero.

    ``uniforms`` (B, R) decide what is sampled; at temperature 0 they are None.
    """
    with policy.autocast(), merged_for_generation(policy.model):
        reply_ids = generate_ids(policy.model, prompt_ids, sampling, uniforms)
    has_eos = torch.tensor([ids[-1] in sampling.stop_token_ids for ids in reply_ids])
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in reply_ids]
    return new_rollout(prompts, prompt_ids, reply_ids, texts, has_eos)


def new_rollout(
    prompts: list[Prompt], prompt_ids: list[list[int]], reply_ids: list[list[int]], texts: list[str], has_eos: Any
) -> Rollout:
    """Replies to B prompts, which ``run_networks`` has not seen: ``has_eos`` is (B,) bool."""
    width = max(map(len, reply_ids))
    mask = torch.tensor([[i < len(ids) for i in range(width)] for ids in reply_ids])
    zeros = [torch.zeros(mask.shape) for _ in range(4)]
    return Rollout(prompts, prompt_ids, reply_ids, texts, has_eos, mask, *zeros)


def run_networks(policy: Policy, batch: Rollout, temperature: float, microbatch_tokens: int, pad_token_id: int) -> None:
    """Run the replies through policy, reference and critic once more, and write what they give into ``batch``.

    Log-probabilities come from the forward pass that training uses, not from sampling, so that the ratio of the first
    epoch is exactly 1.
    """
    mask, unchanged = batch.mask, policy.is_reference
    with torch.no_grad(), policy.frozen_weights_in_bf16():
        for part in microbatches(batch, list(range(len(batch.prompts))), microbatch_tokens, pad_token_id):
            ids, response_mask = part.ids.to(policy.model.device), part.response_mask.to(policy.model.device)
            output = policy(ids, response_mask, temperature)
            scatter_tokens(batch.logprobs, output.logprobs, part.rows, mask)
            scatter_tokens(batch.values, output.values, part.rows, mask)
            scatter_tokens(batch.entropy, output.entropy, part.rows, mask)
            reference = output.logprobs if unchanged else policy.reference_logprobs(ids, response_mask, temperature)
            scatter_tokens(batch.ref_logprobs, reference, part.rows, mask)


def scatter_tokens(table: torch.Tensor, flat: torch.Tensor, rows: list[int], mask: torch.Tensor) -> None:
    """Write the (N,) values of the tokens of ``rows``, in order, into the (B, R) ``table``."""
    part = table[rows]
    part[mask[rows]] = flat.float().cpu()
    table[rows] = part


def microbatches(rollout: Rollout, rows: list[int], max_tokens: int, pad_token_id: int) -> Iterator[MicroBatch]:
    """The rows in microbatches of similar length, each of at most ``max_tokens`` padded tokens (one row at least)."""
    lengths = rollout.lengths
    for batch in length_batches([lengths[r] for r in rows], max_tokens):
        yield collate_rows(rollout, [rows[i] for i in batch], pad_token_id)


def collate_rows(rollout: Rollout, rows: list[int], pad_token_id: int) -> MicroBatch:
    """Prompt and reply of each row, right-padded: ids (b, T) and response mask (b, T-1)."""
    lengths = rollout.lengths
    width = max(lengths[r] for r in rows)
    ids = torch.full((len(rows), width), pad_token_id)
    response_mask = torch.zeros((len(rows), width - 1), dtype=torch.bool)
    for i, r in enumerate(rows):
        prompt, reply = rollout.prompt_ids[r], rollout.reply_ids[r]
        ids[i, : lengths[r]] = torch.tensor(prompt + reply)
        response_mask[i, len(prompt) - 1 : lengths[r] - 1] = True
    return MicroBatch(rows, ids, response_mask)


def sample_table(
    rollout: Rollout, rewards: dict[str, list[float]], extra: dict[str, list[Any]], kl: torch.Tensor, count: int
) -> list[dict[str, Any]]:
    """The first ``count`` replies as records: prompt, reply, rewards, KL (B,) in nats, tokens, EOS, ``extra`` columns.

    A reward that abstained is None.
    """
    return [
        {
            "prompt": rollout.prompts[i].messages[-1]["content"],
            "reply": rollout.texts[i],
            **{name: None if math.isnan(values[i]) else round(values[i], 3) for name, values in rewards.items()},
            "kl": round(float(kl[i]), 3),
            "tokens": len(rollout.reply_ids[i]),
            "has_eos": bool(rollout.has_eos[i]),
            **{name: values[i] for name, values in extra.items()},
        }
        for i in range(min(count, len(rollout.texts)))
    ]
