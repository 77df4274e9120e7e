"""Supervised fine-tuning: cross-entropy on the tokens that carry loss."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from manners.data.batching import Batch
from manners.data.tokenize import IGNORE_INDEX
from manners.methods.lightning import MetricAccumulator, TrainingModule
from manners.models.logprobs import token_nll
from manners.models.policy import has_dropout


class SFTModule(TrainingModule):
    """Trains ``model`` on batches of ``input_ids`` and ``labels``; logs loss, perplexity and token accuracy."""

    def __init__(self, model: Any, *settings: Any, neftune_noise_alpha: float | None = None, **named_settings: Any):
        super().__init__(model, *settings, **named_settings)
        self.neftune_noise_alpha, self.has_dropout = neftune_noise_alpha, has_dropout(model)

    def compute_loss(self, batch: Batch) -> tuple[torch.Tensor, int, int]:
        """Cross-entropy, summed over the targets: (). Without noise in the validation.

        Where training draws random numbers, each row draws its own: then no row is read in part with another.
        """
        if self.neftune_noise_alpha is None or not self.training:
            return sft_loss(self.model, batch, share_prefixes=not (self.training and self.has_dropout))
        with noisy_embeddings(self.model, self.neftune_noise_alpha, conversation_lengths(batch)):
            return sft_loss(self.model, batch)

    def metrics(self, accumulator: MetricAccumulator, prefix: str) -> dict[str, float]:
        """The loss is in nats per target token."""
        return accumulator.metrics(prefix) | {
            f"{prefix}/perplexity": math.exp(min(accumulator.loss, 50.0)),
            f"{prefix}/token_accuracy": accumulator.accuracy,
        }


def sft_loss(model: Any, batch: Batch, share_prefixes: bool = False) -> tuple[torch.Tensor, int, int]:
    """Summed negative log-likelihood () of the tokens that carry loss, how many are predicted right, and their number.

    ``batch`` has ``input_ids`` and ``labels`` (B, T), and where rows are packed ``position_ids`` (B, T). See
    ``token_nll`` for ``share_prefixes``.
    """
    loss_mask = batch["labels"][:, 1:] != IGNORE_INDEX  # (B, T-1)
    nll, correct = token_nll(model, batch["input_ids"], loss_mask, batch.get("position_ids"), share_prefixes)
    return nll.sum(), int(correct.sum()), int(loss_mask.sum())


@contextmanager
def noisy_embeddings(model: Any, alpha: float, lengths: torch.Tensor) -> Iterator[None]:
    """Add uniform noise of at most ``alpha / sqrt(L d)`` to the input embeddings (B, T, d) inside the context.

    NEFTune: Jain et al. 2023, arXiv 2310.05914, algorithm 1, with L the length of a token's own conversation in
    ``lengths`` (B, T). transformers' hook takes the padded or packed length of the row for it. The noise comes from
    torch's random state, as dropout does: a resumed run restores it.
    """

    def add_noise(_embedding: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        scale = alpha / torch.sqrt(lengths * output.shape[-1])  # (B, T)
        return output + torch.zeros_like(output).uniform_(-1, 1) * scale[..., None].to(output.dtype)

    hook = model.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        hook.remove()


def conversation_lengths(batch: Batch) -> torch.Tensor:
    """The number of tokens (B, T) of each token's own conversation; padding counts as one where rows are packed."""
    if "position_ids" not in batch:
        return batch["row_lengths"][:, None].expand_as(batch["input_ids"])
    conversation = (batch["position_ids"] == 0).cumsum(1) - 1  # (B, T)
    lengths = torch.zeros_like(conversation).scatter_add_(1, conversation, torch.ones_like(conversation))
    return lengths.gather(1, conversation)
