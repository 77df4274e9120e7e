"""Reward models: regression of a score, or Bradley-Terry on pairs, by one module."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from manners.data.batching import length_batches
from manners.data.prompt_groups import PromptGroup, collate_groups, group_by_prompt
from manners.data.reward_examples import reward_examples
from manners.data.types import Message
from manners.methods.lightning import MetricAccumulator, TrainingModule
from manners.models.reward_model import ScoreNormalizer, is_encoder, normalized_scores, supports_shared_prompts

MAX_TOKENS = 8192  # padded tokens scored at once: little memory, since no gradients are kept


class RewardModule(TrainingModule):
    """Trains ``model`` on batches with ``targets`` (regression) or ``margins`` (pairs): see ``collate_groups``.

    A regression may learn the order of a prompt's replies besides, at the price ``order``: see ``ranking_loss``.
    """

    def __init__(self, model: Any, loss: str, order: float = 0.0, **settings: Any):
        super().__init__(model, **settings)
        self.kind, self.order = loss, order

    def step(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int, int]:
        scores = normalized_scores(self.model, batch)
        if self.kind == "pairwise":
            chosen, rejected = scores.chunk(2)
            return bradley_terry_loss(chosen, rejected, batch["margins"]), int((chosen > rejected).sum()), len(chosen)
        targets = batch["targets"]
        close = (scores - targets).abs() < 0.5  # half a standard deviation
        loss = regression_loss(scores, targets, self.kind)
        if self.order and "ends" in batch:  # where no prompt of the batch has a second reply, there is no order
            loss = loss + self.order * ranking_loss(scores, targets, batch["ends"][:, 0])
        return loss, int(close.sum()), len(scores)

    def metrics(self, window: MetricAccumulator, prefix: str) -> dict[str, float]:
        name = "pair_accuracy" if self.kind == "pairwise" else "within_half_sd"
        return window.metrics(prefix) | {f"{prefix}/{name}": window.accuracy}


def regression_loss(scores: torch.Tensor, targets: torch.Tensor, kind: str) -> torch.Tensor:
    """Summed squared error, or Huber's with its bend at one standard deviation: (B,), (B,) → ()."""
    return (
        F.mse_loss(scores, targets, reduction="sum")
        if kind == "mse"
        else F.huber_loss(scores, targets, reduction="sum")
    )


def ranking_loss(scores: torch.Tensor, targets: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """How wrongly the replies to each prompt are ordered: (N,) scores, targets, and the numbers of the prompts → ().

    Of every two replies with different targets −log σ(2 · (better − worse)); the mean over a prompt's pairs counts once
    for each of its replies, so that it stands beside a sum of squared errors. Learned together, a score says both how
    good a reply is and which of two is better (Sculley 2010, "Combined Regression and Ranking", section 2).
    """
    kin = prompts[:, None] == prompts[None, :]  # (N, N)
    pairs = kin & (targets[:, None] > targets[None, :])
    nats = F.softplus(-2 * (scores[:, None] - scores[None, :])) * pairs
    count = torch.zeros_like(scores).index_add(0, prompts, pairs.sum(1).to(scores.dtype))  # of each prompt; (N,)
    return (nats.sum(1) * kin.sum(1) / count[prompts].clamp(min=1)).sum()


def bradley_terry_loss(chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """Σ −log σ(chosen − rejected − margin): Bradley and Terry 1952; the margin as in Llama 2, section 3.2.2."""
    return -F.logsigmoid(chosen - rejected - margins).sum()


@torch.no_grad()
def predict_scores(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    replies: Sequence[tuple[list[Message], str]],
) -> list[float]:
    """Standardised scores of (conversation, reply) pairs, in order."""
    was_training = network.training
    network.eval()
    share = supports_shared_prompts(network)
    passages = reward_examples(replies, tokenizer, max_length, decoder=not is_encoder(network))
    groups = group_by_prompt(passages, share)
    kin = [PromptGroup([passages[i] for i in group]) for group in groups]
    scores = [0.0] * len(passages)
    for rows in length_batches([family.length for family in kin], MAX_TOKENS):
        batch = collate_groups([kin[r] for r in rows], tokenizer.pad_token_id, share)
        on_device = {k: v.to(network.device) for k, v in batch.items()}
        members = [i for r in rows for i in groups[r]]
        for i, score in zip(members, normalized_scores(network, on_device).tolist(), strict=True):
            scores[i] = score
    network.train(was_training)
    return scores


def make_reward_func(network: Any, tokenizer: PreTrainedTokenizerBase, max_length: int, units: ScoreNormalizer) -> Any:
    """The model as PPO's reward function. ``units`` make its scores of order 1, whatever they were learned from.

    Conversations and replies come as messages and are read by the model's own tokenizer, not by the policy's.
    """

    def score(prompts: Sequence[list[Message]], completions: Sequence[list[Message]], **_columns: Any) -> list[float]:
        replies = [(prompt, completion[0]["content"]) for prompt, completion in zip(prompts, completions, strict=True)]
        return [units.mean + units.scale * raw for raw in predict_scores(network, tokenizer, max_length, replies)]

    return score
