"""The processes that train together: which rows are ours, and sums over all. accelerate does the talking."""

import os
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from manners.config.schema import OnlineRLConfig, RLOOConfig
from manners.errors import MannersError


@dataclass(frozen=True)
class ProcessGroup:
    """Alone by default. ``accelerator`` is accelerate's, where several processes share a rollout."""

    rank: int = 0
    size: int = 1
    accelerator: Any = None

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.size == 1:
            return tensor
        there = tensor.to(self.accelerator.device)  # NCCL adds up on the GPU alone
        return self.accelerator.reduce(there, "sum").to(tensor.device)

    def gather(self, items: list[Any]) -> list[Any]:
        """Every process's items, end to end, on all of them."""
        from accelerate.utils import gather_object

        return list(gather_object(items)) if self.size > 1 else items

    def shard(self, rows: list[Any]) -> list[Any]:
        """This process's share of what all have: one run of neighbours, so that siblings stay together."""
        each = len(rows) // self.size
        return rows[self.rank * each : (self.rank + 1) * each]

    def local_indices(self, rows: list[int], held: int) -> list[int]:
        """Of the rows of all processes, those that this one holds, by its own numbers."""
        first = self.rank * held
        return [r - first for r in rows if first <= r < first + held]

    def broadcast(self, text: str) -> None:
        """The first process says what the others ``hear``."""
        self._broadcast([text])

    def receive(self) -> str:
        return str(self._broadcast([None])[0])

    def _broadcast(self, said: list[Any]) -> list[Any]:
        from accelerate.utils import broadcast_object_list

        return list(broadcast_object_list(said)) if self.size > 1 else said


SINGLE_PROCESS = ProcessGroup()


def init_distributed(device: str, method: str, devices: int = 1) -> ProcessGroup:
    """The process_group that ``torchrun`` or ``accelerate launch`` started us in. ``device`` is "cpu", "cuda" or "mps".

    ``devices`` are those that SFT and reward models are to have, which is a part of what makes their run.
    """
    reject_lone_accelerate()
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if method == "dpo" and started > 1:
        raise MannersError(f"method={method} trains in one process: start it as python train.py, without torchrun.")
    if method in ("sft", "reward") and started != devices:
        more = f"hardware=ddp hardware.devices={started}" if started > 1 else "hardware.devices=1"
        raise MannersError(f"hardware.devices={devices}, and {started} processes were started: add {more}.")
    if started == 1:
        return SINGLE_PROCESS
    from accelerate import Accelerator, InitProcessGroupKwargs

    threading.Thread(target=exit_with_launcher, args=(os.getppid(),), daemon=True).start()
    if device == "cpu":  # torchrun on a CPU would otherwise run undistributed, without a word
        os.environ["ACCELERATE_USE_CPU"] = "true"
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # the first process evaluates while others wait
    accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[patience])
    return ProcessGroup(accelerator.process_index, accelerator.num_processes, accelerator)


def exit_with_launcher(launcher: int) -> None:
    """A launcher that is killed cannot end its processes, which would hold the run from the command that goes on."""
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


def check_batch_divides(s: OnlineRLConfig, process_group: ProcessGroup) -> None:
    """Every process has as many replies, and siblings stay in one."""
    together = process_group.size * (s.num_generations if isinstance(s, RLOOConfig) else 1)
    if s.batch_size % together:
        raise MannersError(
            f"method.batch_size={s.batch_size} cannot be shared out among {process_group.size} processes: it must be a "
            f"multiple of {together}."
        )


def reject_lone_accelerate() -> None:
    """accelerate launch that was asked for several processes and started one, without a word, as it does on a CPU."""
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        raise MannersError(
            "accelerate launch was asked for several processes and has started one: it starts several on GPUs only. "
            "Here it is torchrun --nproc-per-node N train.py, with your options after it."
        )


def lightning_strategy(name: str, processes: int) -> Any:
    """Lightning's, by the name that ``hardware.strategy`` gives it."""
    if processes == 1:
        return "auto"
    if name == "ddp":
        return DDPStrategy()
    # One file for a checkpoint, as with one device: so a run's folder looks alike, however it was trained.
    return ModelParallelStrategy(
        data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def shard_with_fsdp(module: Any) -> None:
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


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this device may hold a share. Every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
