"""How likely another model finds what was said."""

from typing import Any

import numpy as np
import torch

from manners.data.batching import length_batches
from manners.models.logprobs import token_nll


@torch.no_grad()
def reference_nll(
    model: Any, prompt_ids: list[list[int]], reply_ids: list[list[int]], slots: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """Each reply's nats under ``model``, given its prompt, and its number of tokens: (N,) both.

    e to the power of Σ nats / Σ tokens is the perplexity. ``model`` reads the policy's own tokens.
    """
    rows = [p + r for p, r in zip(prompt_ids, reply_ids, strict=True)]
    nats = np.zeros(len(rows))
    for batch in length_batches([len(row) for row in rows], slots):
        width = max(len(rows[i]) for i in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        chosen = torch.zeros((len(batch), width - 1), dtype=torch.bool)
        for at, i in enumerate(batch):
            ids[at, : len(rows[i])] = torch.tensor(rows[i])
            chosen[at, len(prompt_ids[i]) - 1 : len(rows[i]) - 1] = True
        found = torch.zeros(chosen.shape)
        found[chosen] = token_nll(model, ids.to(model.device), chosen.to(model.device))[0].cpu()
        nats[batch] = found.sum(1).double().numpy()
    return nats, np.array([float(len(r)) for r in reply_ids])
