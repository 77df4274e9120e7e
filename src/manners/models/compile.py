"""Compile a model's layers for training (torch.compile): fewer passes over memory for all that is not a matmul.

The layers are compiled one by one, not the model as a whole: all layers share their code, so it is compiled only once
(PyTorch's tutorial on regional compilation).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from manners.errors import MannersError


@contextmanager
def compiled_layers(model: torch.nn.Module, enabled: bool) -> Iterator[None]:
    """Run the layers of ``model`` compiled inside the context if ``enabled``, for any batch size and sequence length.

    Outside they run eagerly: generation, whose cache grows with every token, would recompile them again and again.
    Raises MannersError for a model without transformers' GradientCheckpointingLayer.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if enabled else []
    if enabled and not layers:
        raise MannersError(
            f"hardware.compile=true: {type(model).__name__} has no layers that can be compiled one by one. "
            "Use hardware.compile=false."
        )
    if enabled:
        torch.compiler.reset()  # what earlier jobs of a sweep compiled counts towards the recompile limit
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None  # Module.compile has no inverse
