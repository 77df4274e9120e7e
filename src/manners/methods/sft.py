"""Supervised fine-tuning: cross-entropy on the tokens that carry loss."""

import math
from typing import Any

import torch

from manners.data.batching import Batch
from manners.data.tokenize import IGNORE_INDEX
from manners.methods.lightning import MetricAccumulator, TrainingModule
from manners.models.logprobs import token_nll


class SFTModule(TrainingModule):
    """Trains ``model`` on batches of ``input_ids`` and ``labels``; logs loss, perplexity and token accuracy."""

    def compute_loss(self, batch: Batch) -> tuple[torch.Tensor, int, int]:
        """Cross-entropy, summed over the targets: ()."""
        return sft_loss(self.model, batch)

    def metrics(self, accumulator: MetricAccumulator, prefix: str) -> dict[str, float]:
        """The loss is in nats per target token."""
        return accumulator.metrics(prefix) | {
            f"{prefix}/perplexity": math.exp(min(accumulator.loss, 50.0)),
            f"{prefix}/token_accuracy": accumulator.accuracy,
        }


def sft_loss(model: Any, batch: Batch) -> tuple[torch.Tensor, int, int]:
    """Summed negative log-likelihood () of the tokens that carry loss, how many are predicted right, and their number.

    ``batch`` has ``input_ids`` and ``labels`` (B, T), and where rows are packed ``position_ids`` (B, T).
    """
    loss_mask = batch["labels"][:, 1:] != IGNORE_INDEX  # (B, T-1)
    nll, correct = token_nll(model, batch["input_ids"], loss_mask, batch.get("position_ids"))
    return nll.sum(), int(correct.sum()), int(loss_mask.sum())
