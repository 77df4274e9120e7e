"""One model on several devices: DDP gives each a copy of it, FSDP a share.

Each device computes its part of a batch. Both ways end in the same weights as one device does with the whole batch, up
to the rounding of a sum taken in another order.
"""

from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor


def strategy(name: str, processes: int) -> Any:
    """Lightning's, by the name that ``hardware.strategy`` gives it."""
    if processes == 1:
        return "auto"
    if name == "ddp":
        return DDPStrategy()
    # One file for a checkpoint, as with one device: so a run's folder looks alike, however it was trained.
    return ModelParallelStrategy(
        data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def shard(module: Any) -> None:
    """Share the weights of a LightningModule out, where its strategy is FSDP's (Zhao et al. 2023, arXiv 2304.11277).

    A layer's are together only while it computes. Parameters keep their names and shapes, so that an adapter's train
    beside frozen ones.
    """
    if not isinstance(module.trainer.strategy, ModelParallelStrategy) or isinstance(module, FSDPModule):
        return
    mesh = module.device_mesh["data_parallel"]
    layers = set(module.model._no_split_modules or ())
    for part in [m for m in module.model.modules() if type(m).__name__ in layers]:
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for name in ("training_step", "validation_step"):  # which Lightning calls in place of forward
        register_fsdp_forward_method(module, name)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this device may hold a share. Every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
