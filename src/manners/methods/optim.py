"""The optimizer, by the name that ``method.optim`` gives it."""

from typing import Any

import torch


def adamw(groups: list[dict[str, Any]], optim: str, **settings: Any) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); ``paged_adamw_8bit`` keeps its moments in 8 bits, a quarter of the memory.

    Pages move to the machine's memory where a GPU's is full (Dettmers et al. 2023, section 3); on a CPU there are none.
    """
    if optim == "paged_adamw_8bit":
        from bitsandbytes.optim import PagedAdamW8bit

        return PagedAdamW8bit(groups, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)  # one pass over each tensor, in place of ten
