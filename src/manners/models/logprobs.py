"""Negative log-likelihoods of selected tokens, without computing the logits of all the others."""

from typing import Any

import torch
import torch.nn.functional as F


def token_nll(
    model: Any, input_ids: torch.Tensor, loss_mask: torch.Tensor, position_ids: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the NLL (N,) in nats of the N tokens in ``loss_mask`` (B, T-1), and whether each was the argmax (N,).

    ``loss_mask[:, t]`` selects token t + 1 of ``input_ids`` (B, T), which position t predicts. The language-model head
    runs on those positions alone, which saves most of its time and memory for long prompts and large vocabularies.
    """
    extra = {} if position_ids is None else {"position_ids": position_ids}
    hidden = model.get_decoder()(input_ids, use_cache=False, **extra).last_hidden_state  # (B, T, H)
    logits = model.get_output_embeddings()(hidden[:, :-1][loss_mask]).float()  # (N, V)
    targets = input_ids[:, 1:][loss_mask]
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets
