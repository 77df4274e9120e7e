"""Negative log-likelihood of replies under another model, such as a policy's base."""

from typing import Any

import numpy as np
import torch

from manners.data.batching import length_batches
from manners.models.logprobs import token_nll


@torch.no_grad()
def reference_nll(
    model: Any, prompt_ids: list[list[int]], reply_ids: list[list[int]], max_tokens: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed NLL (N,) of each reply in nats, given its prompt, and its number of tokens (N,).

    The perplexity is exp(Σ NLL / Σ tokens). ``model`` must have the tokenizer of the ids. A batch has at most
    ``max_tokens`` tokens, padding included.
    """
    rows = [prompt + reply for prompt, reply in zip(prompt_ids, reply_ids, strict=True)]
    sums = np.zeros(len(rows))
    for batch in length_batches([len(row) for row in rows], max_tokens):
        width = max(len(rows[i]) for i in batch)
        input_ids = torch.zeros((len(batch), width), dtype=torch.long)
        loss_mask = torch.zeros((len(batch), width - 1), dtype=torch.bool)
        for b, i in enumerate(batch):
            input_ids[b, : len(rows[i])] = torch.tensor(rows[i])
            loss_mask[b, len(prompt_ids[i]) - 1 : len(rows[i]) - 1] = True
        nll = torch.zeros(loss_mask.shape)
        ids, asked = input_ids.to(model.device), loss_mask.to(model.device)
        nll[loss_mask] = token_nll(model, ids, asked, share_prefixes=True)[0].cpu()
        sums[batch] = nll.sum(1).double().numpy()
    return sums, np.array([float(len(reply)) for reply in reply_ids])
