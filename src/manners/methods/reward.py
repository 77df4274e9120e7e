"""Training of reward models: regression of a score, or Bradley-Terry on pairs; and the trained model's scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from manners.data.batching import Batch, length_batches
from manners.data.prompt_groups import PromptGroup, collate_groups, group_by_prompt
from manners.data.reward_examples import RewardExample, reward_examples
from manners.data.types import Message
from manners.methods.lightning import MetricAccumulator, TrainingModule
from manners.models.frozen_reward import FrozenRewardModel
from manners.models.reward_model import ScoreNormalizer, is_encoder, normalized_scores, supports_shared_prompts
from manners.runtime.progress import progress

# Padded tokens read at once. No gradients are kept, so a GPU has room for many; on a CPU what a layer hands to the next
# should stay in its cache (SmolLM2-135M: a sixth less time than with 8192).
MAX_TOKENS, MAX_TOKENS_ON_CPU = 8192, 2048


class RewardModule(TrainingModule):
    """Trains ``model`` by ``loss``: "mse" or "huber" on the ``targets`` of a batch, "pairwise" on its ``margins``.

    See ``collate_groups`` for the batches. A regression can also learn the order of the replies to each prompt, with
    the weight ``ranking_coef``: see ``ranking_loss``.
    """

    def __init__(self, model: Any, loss: str, ranking_coef: float = 0.0, **settings: Any):
        super().__init__(model, **settings)
        self.loss, self.ranking_coef = loss, ranking_coef

    def compute_loss(self, batch: Batch) -> tuple[torch.Tensor, int, int]:
        """The loss (), summed over replies or pairs; of these, how many are right; and their number."""
        scores = normalized_scores(self.model, batch)
        if self.loss == "pairwise":
            chosen, rejected = scores.chunk(2)
            return bradley_terry_loss(chosen, rejected, batch["margins"]), int((chosen > rejected).sum()), len(chosen)
        targets = batch["targets"]
        within = (scores - targets).abs() < 0.5  # half a standard deviation
        loss = regression_loss(scores, targets, self.loss)
        if self.ranking_coef and "reply_ends" in batch:  # else no prompt of the batch has a second reply
            loss = loss + self.ranking_coef * ranking_loss(scores, targets, batch["reply_ends"][:, 0])
        return loss, int(within.sum()), len(scores)

    def metrics(self, accumulator: MetricAccumulator, prefix: str) -> dict[str, float]:
        """Right is a pair in the right order, or a score within half a standard deviation."""
        name = "pair_accuracy" if self.loss == "pairwise" else "within_half_sd"
        return accumulator.metrics(prefix) | {f"{prefix}/{name}": accumulator.accuracy}


def regression_loss(scores: torch.Tensor, targets: torch.Tensor, kind: str) -> torch.Tensor:
    """Summed squared error ("mse"), or Huber loss with its threshold at one standard deviation: (N,), (N,) → ()."""
    loss = F.mse_loss if kind == "mse" else F.huber_loss
    return loss(scores, targets, reduction="sum")


def ranking_loss(scores: torch.Tensor, targets: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """How wrongly the replies to each prompt are ordered: scores, targets and prompt numbers (N,) each → ().

    For every two replies with different targets −log σ(2 · (better − worse)). The mean over a prompt's pairs counts
    once for each of its replies, so that it is on the scale of a summed squared error. Trained on both, a score says
    how good a reply is and which of two is better (Sculley 2010, "Combined Regression and Ranking", section 2).
    """
    same_prompt = prompts[:, None] == prompts[None, :]  # (N, N)
    pairs = same_prompt & (targets[:, None] > targets[None, :])
    losses = F.softplus(-2 * (scores[:, None] - scores[None, :])) * pairs
    num_pairs = torch.zeros_like(scores).index_add(0, prompts, pairs.sum(1).to(scores.dtype))  # of each prompt; (N,)
    return (losses.sum(1) * same_prompt.sum(1) / num_pairs[prompts].clamp(min=1)).sum()


def bradley_terry_loss(chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """Σ −log σ(chosen − rejected − margin), (N,) each → (): Bradley and Terry 1952; margin: Llama 2, section 3.2.2.

    TRL's loss, with margins in logits. Those of the data are divided by their root mean square before: 20 points on a
    scale to 25 would ask for odds of e²⁰.
    """
    return -F.logsigmoid(chosen - rejected - margins).sum()


@dataclass(frozen=True)
class FeatureExample:
    """What a frozen base says of a reply, or of a chosen and a rejected one, with the target: an item for its head."""

    features: torch.Tensor  # (1, D), or (2, D) of a pair
    example: RewardExample

    length = num_targets = 1
    tokens = 0  # the base has read them, once for all epochs


@torch.no_grad()
def read_features(
    model: FrozenRewardModel, groups: Sequence[PromptGroup], pad: int, share: bool
) -> list[FeatureExample]:
    """Read every group once by the frozen base: the items that its head is trained on, in order."""
    features: dict[int, torch.Tensor] = {}  # by id of the example
    batches = read_at_once(groups, model.device)
    with progress(len(batches), "reading") as bar:
        for done, rows in enumerate(batches, 1):
            batch = collate_groups([groups[r] for r in rows], pad, share)
            means = model.features({k: v.to(model.device) for k, v in batch.items()})
            examples = [e for r in rows for e in groups[r].examples]
            for i, example in enumerate(examples):
                features[id(example)] = means[i :: len(examples)]  # a rejected reply follows all the chosen ones
            bar.update(done)
    return [FeatureExample(features[id(e)], e) for group in groups for e in group.examples]


def read_at_once(groups: Sequence[PromptGroup], device: torch.device) -> list[list[int]]:
    """Batches of the numbers of ``groups`` of similar length, for a pass without gradients."""
    return length_batches([g.length for g in groups], MAX_TOKENS_ON_CPU if device.type == "cpu" else MAX_TOKENS)


def collate_features(items: list[FeatureExample]) -> Batch:
    """``features`` (N, D), of pairs first those of all chosen replies; and ``targets`` (N,) or ``margins`` (N/2,)."""
    features = torch.cat([*(item.features[:1] for item in items), *(item.features[1:] for item in items)])
    batch = {"features": features, "tokens": torch.tensor(0)}
    if items[0].example.rejected:
        return batch | {"margins": torch.tensor([item.example.margin for item in items])}
    return batch | {"targets": torch.tensor([item.example.target for item in items])}


@torch.no_grad()
def predict_scores(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    replies: Sequence[tuple[list[Message], str]],
    show: str = "",
) -> list[float]:
    """Standardized scores of (messages, reply) pairs, in order; ``show`` names a progress bar."""
    was_training = model.training
    model.eval()
    share = supports_shared_prompts(model)
    examples = reward_examples(replies, tokenizer, max_length, decoder=not is_encoder(model))
    indices = group_by_prompt(examples, share)
    groups = [PromptGroup([examples[i] for i in group]) for group in indices]
    scores = [0.0] * len(examples)
    batches = read_at_once(groups, model.device)
    with progress(len(batches), show, enabled=bool(show) and len(batches) > 1) as bar:
        for done, rows in enumerate(batches, 1):
            batch = collate_groups([groups[r] for r in rows], tokenizer.pad_token_id, share)
            on_device = {k: v.to(model.device) for k, v in batch.items()}
            in_batch = [i for r in rows for i in indices[r]]
            for i, score in zip(in_batch, normalized_scores(model, on_device).tolist(), strict=True):
                scores[i] = score
            bar.update(done)
    model.train(was_training)
    return scores


def make_reward_func(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int, normalizer: ScoreNormalizer
) -> Any:
    """The reward model as PPO's reward function; ``normalizer`` brings its scores to the order of 1.

    Prompts and completions are messages, which the reward model's own tokenizer reads, not the policy's.
    """

    def score(prompts: Sequence[list[Message]], completions: Sequence[list[Message]], **_columns: Any) -> list[float]:
        replies = [(prompt, completion[0]["content"]) for prompt, completion in zip(prompts, completions, strict=True)]
        outputs = predict_scores(model, tokenizer, max_length, replies)
        return [normalizer.to_score(output) for output in outputs]

    return score
