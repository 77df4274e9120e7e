"""Linear layers that multiply by prepacked copies of their weights, which is faster on a CPU.

A matrix product first brings the weight into the order in which the processor's kernel reads it, in every call. oneDNN
can keep a copy in that order, as torch's own compiler does with frozen weights. With the few rows of decoding a product
then takes about two thirds of the time. Making the copies takes what some ten steps of decoding save.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

ROWS = 32  # that the order is chosen for; it serves 4 to 512 equally well
MIN_BYTES, MAX_BYTES = 1e8, 4e9  # of the copies: products with fewer take no time, and for more memory is short
LOCK = threading.Lock()  # of who replaces a layer's forward


class LinearProduct(NamedTuple):
    """A layer that computes ``x Wᵀ + bias``: W is (out, in), bias (out,) or None."""

    layer: torch.nn.Module
    weight: torch.Tensor
    bias: torch.Tensor | None


def can_pack(weights: Sequence[torch.Tensor]) -> bool:
    """Return whether ``weights`` are worth packing, and this CPU and this build of torch can do it."""
    dtypes = {product_dtype(weight) for weight in weights}
    if not dtypes <= {torch.float32, torch.bfloat16} or not torch.backends.mkldnn.is_available():
        return False
    supported = torch.bfloat16 not in dtypes or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported and MIN_BYTES <= sum(w.numel() * product_dtype(w).itemsize for w in weights) <= MAX_BYTES


@contextmanager
def packed_weights(products: Iterable[LinearProduct]) -> Iterator[None]:
    """Inside, these layers, on a CPU, multiply by packed copies of their weights wherever no gradient is computed.

    The weights must stay as they are. A second thread that enters with the same layers uses the copies of the first for
    as long as they are there.
    """
    packed: list[torch.nn.Module] = []
    try:
        with LOCK, torch.no_grad():
            for product in products:
                if "forward" not in vars(product.layer):
                    product.layer.forward = packed_forward(product)
                    packed.append(product.layer)
        yield
    finally:
        for layer in packed:
            del layer.forward


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """In which a product with ``x`` is computed: its own, or that of autocast, which leaves doubles alone."""
    autocast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if autocast else x.dtype


def packed_forward(product: LinearProduct) -> Callable[..., Any]:
    """The forward of a layer by a packed copy of its weight: (..., in) → (..., out).

    The layer's own forward answers where the copy would be wrong: with gradients, in another number format, and after a
    switch of adapters.
    """
    layer, dtype, adapters = product.layer, product_dtype(product.weight), active_adapters(product.layer)
    weight = torch.ops.mkldnn._reorder_linear_weight(product.weight.detach().to(dtype).contiguous(), ROWS)
    bias = None if product.bias is None else product.bias.detach().to(dtype)

    def forward(*args: Any, **kwargs: Any) -> Any:
        as_packed = len(args) == 1 and not kwargs and not torch.is_grad_enabled()
        if not as_packed or product_dtype(args[0]) != dtype or active_adapters(layer) != adapters:
            return type(layer).forward(layer, *args, **kwargs)
        return torch.ops.mkldnn._linear_pointwise(args[0].to(dtype), weight, bias, "none", [], "")

    return forward


def active_adapters(layer: Any) -> Any:
    """What of peft's adapters a layer uses; nothing where it has none."""
    return [] if getattr(layer, "disable_adapters", True) else layer.active_adapters
