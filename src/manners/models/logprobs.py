"""Negative log-likelihoods of selected tokens, without computing the logits of all the others."""

from typing import Any

import torch
import torch.nn.functional as F


def masked_logits(
    model: Any, input_ids: torch.Tensor, mask: torch.Tensor, **extra: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits (N, V) at the N positions in ``mask`` (B, T-1), and the hidden states (N, H) that give them.

    The model's own forward pass computes them, so that whatever it does to logits is done (Gemma 2 caps them, Granite
    and Cohere scale them). Its language-model head runs on those positions alone, which saves most of its time and
    memory for long prompts and large vocabularies.
    """
    selected: list[torch.Tensor] = []

    def select(_head: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        selected.append(inputs[0][:, :-1][mask])
        return (selected[0],)

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        logits = model(input_ids=input_ids, use_cache=False, **extra).logits
    finally:
        hook.remove()
    return logits, selected[0]


def token_nll(
    model: Any, input_ids: torch.Tensor, loss_mask: torch.Tensor, position_ids: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the NLL (N,) in nats of the N tokens in ``loss_mask`` (B, T-1), and whether each was the argmax (N,).

    ``loss_mask[:, t]`` selects token t + 1 of ``input_ids`` (B, T), which position t predicts.
    """
    extra = {} if position_ids is None else {"position_ids": position_ids}
    logits = masked_logits(model, input_ids, loss_mask, **extra)[0].float()
    targets = input_ids[:, 1:][loss_mask]
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets
