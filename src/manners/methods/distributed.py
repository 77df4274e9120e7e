"""Several processes that train one model: what each of them works on, and DDP or FSDP. accelerate communicates."""

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
    """A single process by default. ``accelerator`` is accelerate's Accelerator where there are several."""

    rank: int = 0
    size: int = 1
    accelerator: Any = None

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elementwise sum over all processes, of any shape (...) → (...)."""
        if self.size == 1:
            return tensor
        on_device = tensor.to(self.accelerator.device)  # NCCL reduces on the GPU only
        return self.accelerator.reduce(on_device, "sum").to(tensor.device)

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, concatenated, on each of them."""
        from accelerate.utils import gather_object

        return list(gather_object(items)) if self.size > 1 else items

    def shard(self, rows: list[Any]) -> list[Any]:
        """This process's contiguous part of ``rows``, so that the replies to one prompt stay together."""
        size = len(rows) // self.size
        return rows[self.rank * size : (self.rank + 1) * size]

    def local_indices(self, rows: list[int], local_size: int) -> list[int]:
        """Those of the global row indices that this process holds, as indices into its ``local_size`` rows."""
        first = self.rank * local_size
        return [r - first for r in rows if first <= r < first + local_size]

    def broadcast(self, text: str) -> None:
        """Send ``text`` from the first process to those that call ``receive``."""
        self._broadcast([text])

    def receive(self) -> str:
        """What the first process broadcasts."""
        return str(self._broadcast([None])[0])

    def _broadcast(self, objects: list[Any]) -> list[Any]:
        from accelerate.utils import broadcast_object_list

        return list(broadcast_object_list(objects)) if self.size > 1 else objects


SINGLE_PROCESS = ProcessGroup()


def init_distributed(device: str, method: str, devices: int = 1) -> ProcessGroup:
    """The processes that ``torchrun`` or ``accelerate launch`` started. ``device`` is "cpu", "cuda" or "mps".

    ``devices`` is hardware.devices: the number of processes that SFT and reward training expect. Raises MannersError
    where the method cannot train in as many processes as were started.
    """
    reject_lone_accelerate()
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if method in ("dpo", "kto") and started > 1:
        raise MannersError(f"method={method} trains in one process: start it as python train.py, without torchrun.")
    if method in ("sft", "reward") and started != devices:
        fix = f"hardware=ddp hardware.devices={started}" if started > 1 else "hardware.devices=1"
        raise MannersError(f"hardware.devices={devices}, and {started} processes were started: add {fix}.")
    if started == 1:
        return SINGLE_PROCESS
    from accelerate import Accelerator, InitProcessGroupKwargs

    threading.Thread(target=exit_with_launcher, args=(os.getppid(),), daemon=True).start()
    if device == "cpu":  # torchrun on a CPU would otherwise silently run undistributed
        os.environ["ACCELERATE_USE_CPU"] = "true"
    timeout = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # the first process evaluates while the others wait
    accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[timeout])
    return ProcessGroup(accelerator.process_index, accelerator.num_processes, accelerator)


def exit_with_launcher(launcher: int) -> None:
    """Exit when the process ``launcher`` is gone: killed, it cannot end its processes, which keep the run's lock."""
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


def check_batch_divides(config: OnlineRLConfig, process_group: ProcessGroup) -> None:
    """Raises MannersError where the processes would not get equal batches of whole groups of replies to a prompt."""
    multiple = process_group.size * (config.num_generations if isinstance(config, RLOOConfig) else 1)
    if config.batch_size % multiple:
        raise MannersError(
            f"method.batch_size={config.batch_size} cannot be divided among {process_group.size} processes: it must be "
            f"a multiple of {multiple}."
        )


def reject_lone_accelerate() -> None:
    """Raises MannersError where accelerate launch was asked for several processes and started one, as on a CPU."""
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        raise MannersError(
            "accelerate launch was asked for several processes and has started one: it starts several on GPUs only. "
            "On a CPU use torchrun --nproc-per-node N train.py, followed by your options."
        )


def lightning_strategy(name: str, processes: int) -> Any:
    """Lightning's strategy for ``hardware.strategy``."""
    if processes == 1:
        return "auto"
    if name == "ddp":
        return DDPStrategy()
    # A checkpoint is one file, as with one device: a run's directory looks the same however it was trained.
    return ModelParallelStrategy(
        data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def shard_with_fsdp(module: Any) -> None:
    """Shard the weights of a LightningModule whose strategy is FSDP (Zhao et al. 2023, arXiv 2304.11277).

    A layer is gathered only while it computes. Parameters keep their names and shapes, so that trainable ones may stand
    next to frozen ones, as with an adapter.
    """
    if not isinstance(module.trainer.strategy, ModelParallelStrategy) or isinstance(module, FSDPModule):
        return
    mesh = module.device_mesh["data_parallel"]
    layer_names = set(module.model._no_split_modules or ())
    for layer in [m for m in module.model.modules() if type(m).__name__ in layer_names]:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for method in ("training_step", "validation_step"):  # which Lightning calls instead of forward
        register_fsdp_forward_method(module, method)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor (...) of a sharded one. A collective operation: every process has to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
