"""peft's LoRA layer in fewer passes over its output: the same numbers, up to rounding.

``y = x Wᵀ + s (x Aᵀ) Bᵀ``, where the second product is added to the first as it is made. Written out, each of scaling,
adding and their gradients is a pass of its own over (tokens, features), which small models spend much of a step on.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear


class LowRank(Linear):
    """The layer while one adapter of the plain kind trains in its own number format; else it is peft's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        (name, *others), base = self.active_adapters or [None], self.base_layer
        plain = name in self.lora_A and name not in self.lora_variant and not others and not args and not kwargs
        if not plain or self.disable_adapters or self.merged or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        if type(base) is not torch.nn.Linear or self.lora_bias[name] or not x.dtype == base.weight.dtype == a.dtype:
            return super().forward(x)
        if self.training and not isinstance(self.lora_dropout[name], torch.nn.Identity):
            return super().forward(x)
        return Product.apply(x, base.weight, base.bias, a, b, self.scaling[name])  # type: ignore[no-untyped-call]


class Product(torch.autograd.Function):
    """x (..., in), frozen W (out, in) and its bias (out,), A (r, in), B (out, r), and the scale s → y (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, bias: Any, a: Any, b: Any, scale: float) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (T, in)
        narrow = flat @ a.t()  # (T, r)
        y = torch.nn.functional.linear(flat, w, bias).addmm_(narrow, b.t(), alpha=scale)  # (T, out)
        ctx.save_for_backward(flat, narrow, w, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        flat, narrow, w, a, b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])  # (T, out)
        back = (grad @ b).mul_(ctx.scale)  # (T, r)
        of_x = (grad @ w).addmm_(back, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return of_x, None, None, back.t() @ flat, (grad.t() @ narrow).mul_(ctx.scale), None


def quicken(model: torch.nn.Module) -> None:
    """Have the LoRA layers of ``model`` compute so."""
    for layer in model.modules():
        if type(layer) is Linear:
            layer.__class__ = LowRank
