"""Supervised fine-tuning: cross-entropy on the tokens that carry loss."""

import math
from typing import Any

import torch

from manners.data.tokenize import IGNORE_INDEX
from manners.methods.lightning import MetricAccumulator, TrainingModule
from manners.models.logprobs import token_nll


class SFTModule(TrainingModule):
    """Trains ``model`` on batches of ``input_ids`` and ``labels``; validation reports loss, perplexity, accuracy."""

    def step(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int, int]:
        return sft_loss(self.model, batch)

    def metrics(self, window: MetricAccumulator, prefix: str) -> dict[str, float]:
        """Loss in nats a trained token."""
        return window.metrics(prefix) | {
            f"{prefix}/perplexity": math.exp(min(window.loss, 50.0)),
            f"{prefix}/token_accuracy": window.accuracy,
        }


def sft_loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int, int]:
    """Summed negative log-likelihood, right guesses and number of the tokens that carry loss."""
    carries = batch["labels"][:, 1:] != IGNORE_INDEX  # (B, T-1)
    nll, right = token_nll(model, batch["input_ids"], carries, batch.get("position_ids"))
    return nll.sum(), int(right.sum()), int(carries.sum())
