"""The optimizer, by the name that ``method.optim`` gives it, and its learning-rate schedule."""

import math
from typing import Any

import torch


def adamw(groups: list[dict[str, Any]], optim: str, **settings: Any) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); ``paged_adamw_8bit`` keeps its states in 8 bits, a quarter of the memory.

    Its pages move to the CPU's memory where the GPU's is full (Dettmers et al. 2023, section 3); a CPU has no pages.
    """
    if optim == "paged_adamw_8bit":
        from bitsandbytes.optim import PagedAdamW8bit

        return PagedAdamW8bit(groups, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)  # one pass over each tensor instead of ten


def learning_rate_factor(kind: str, step: int, warmup: float, total: int) -> float:
    """The factor of the peak learning rate at optimizer step ``step``, from 0 up to ``total`` - 1.

    It rises linearly over ``warmup`` steps and then follows ``kind`` down to 0 at ``total``. transformers'
    ``get_scheduler`` is not used because its warm-up begins at 0, which wastes the first step.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[kind]
