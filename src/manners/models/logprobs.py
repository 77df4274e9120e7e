"""Negative log-likelihoods of chosen tokens, without the logits of all the others."""

from typing import Any

import torch
import torch.nn.functional as F


def token_nll(
    model: Any, input_ids: torch.Tensor, chosen: torch.Tensor, position_ids: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of the N tokens where ``chosen`` (B, T-1) is true: its nats (N,), and whether it was the likeliest (N,).

    ``chosen[:, t]`` speaks of token t + 1, which position t predicts. The language-model head runs on those positions
    alone, which spares most of its work and memory on long prompts and large vocabularies.
    """
    extra = {} if position_ids is None else {"position_ids": position_ids}
    hidden = model.get_decoder()(input_ids, use_cache=False, **extra).last_hidden_state  # (B, T, H)
    logits = model.get_output_embeddings()(hidden[:, :-1][chosen]).float()  # (N, V)
    targets = input_ids[:, 1:][chosen]
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets
