"""Compile a network's layers while it trains (torch.compile): fewer passes over memory for what is no matrix product.

Layer by layer and not the network as one: all layers share the code, which is then made once (PyTorch's tutorial on
regional compilation).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from manners.errors import MannersError


@contextmanager
def compiled_layers(model: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """Within, the layers of ``model`` are compiled if ``wanted``, once for any number of rows and of tokens.

    Beyond it they run as they are written: decoding, with a cache that grows, would compile them again and again.
    Raises MannersError for a model whose layers are not known.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if wanted else []
    if wanted and not layers:
        raise MannersError(f"hardware.compile=true: layers of a {type(model).__name__} are not known: leave it out.")
    if wanted:
        torch.compiler.reset()  # so that what earlier jobs of a sweep compiled does not use up the variants allowed
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None  # Module.compile knows no way back
