"""Attention on a CPU: torch's kernel, called as it is fastest there.

In bf16 the kernel takes several times as long for a backward pass as in 32 bits (18 against 5 ms for 8 rows of 90
tokens with 9 heads; torch 2.13, AMX), so it computes in 32 bits. Where several heads share their keys it is told so,
and need not read copies of them. And it takes twice as long for a gradient whose heads do not follow one another in
memory, as transformers hands it over. Decoding, one token at a time, is left to transformers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

DTYPES = (torch.float32, torch.bfloat16)
OTHER_KERNELS = ("position_bias", "cache", "softcap")  # options of transformers' function that need its own code


def cpu_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' ``sdpa``: (B, heads, T, d) → (B, T, heads, d). In 32 bits for T > 1 on a CPU."""
    plain = query.shape[2] > 1 and not any(kwargs.get(option) is not None for option in OTHER_KERNELS)
    if query.device.type != "cpu" or value.dtype not in DTYPES or not plain:
        settings = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)  # type: ignore[arg-type]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None:
        causal, attention_mask = False, attention_mask if attention_mask.dtype == torch.bool else attention_mask.float()
    shared_keys = query.shape[1] != key.shape[1]
    with torch.autocast("cpu", enabled=False):
        output = F.scaled_dot_product_attention(
            query.float(),
            key.float(),
            value.float(),
            attention_mask,
            dropout,
            causal,
            scale=scaling,
            enable_gqa=shared_keys,
        )
    if output.requires_grad and not torch.compiler.is_compiling():
        output.register_hook(torch.Tensor.contiguous)  # its gradient, before the kernel's backward pass reads it
    return output.transpose(1, 2).contiguous().to(value.dtype), None


AttentionInterface.register("sdpa", cpu_attention)
