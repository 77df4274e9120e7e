"""The processes that train together: which rows are ours, and sums over all. accelerate does the talking."""

import os
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from manners.config import RLOO, Online
from manners.errors import MannersError


@dataclass(frozen=True)
class World:
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

    def mine(self, rows: list[Any]) -> list[Any]:
        """This process's share of what all have: one run of neighbours, so that siblings stay together."""
        each = len(rows) // self.size
        return rows[self.rank * each : (self.rank + 1) * each]

    def local(self, rows: list[int], held: int) -> list[int]:
        """Of the rows of all processes, those that this one holds, by its own numbers."""
        first = self.rank * held
        return [r - first for r in rows if first <= r < first + held]

    def tell(self, text: str) -> None:
        """The first process says what the others ``hear``."""
        self._broadcast([text])

    def hear(self) -> str:
        return str(self._broadcast([None])[0])

    def _broadcast(self, said: list[Any]) -> list[Any]:
        from accelerate.utils import broadcast_object_list

        return list(broadcast_object_list(said)) if self.size > 1 else said


ALONE = World()


def join(device: str, method: str, devices: int = 1) -> World:
    """The world that ``torchrun`` or ``accelerate launch`` started us in. ``device`` is "cpu", "cuda" or "mps".

    ``devices`` are those that SFT and reward models are to have, which is a part of what makes their run.
    """
    refuse_alone()
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if method == "dpo" and started > 1:
        raise MannersError(f"method={method} trains in one process: start it as python train.py, without torchrun.")
    if method in ("sft", "reward") and started != devices:
        more = f"hardware=ddp hardware.devices={started}" if started > 1 else "hardware.devices=1"
        raise MannersError(f"hardware.devices={devices}, and {started} processes were started: add {more}.")
    if started == 1:
        return ALONE
    from accelerate import Accelerator, InitProcessGroupKwargs

    threading.Thread(target=outlive_no_launcher, args=(os.getppid(),), daemon=True).start()
    if device == "cpu":  # torchrun on a CPU would otherwise run undistributed, without a word
        os.environ["ACCELERATE_USE_CPU"] = "true"
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # the first process evaluates while others wait
    accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[patience])
    return World(accelerator.process_index, accelerator.num_processes, accelerator)


def outlive_no_launcher(launcher: int) -> None:
    """A launcher that is killed cannot end its processes, which would hold the run from the command that goes on."""
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


def check_shares(s: Online, world: World) -> None:
    """Every process has as many replies, and siblings stay in one."""
    together = world.size * (s.num_generations if isinstance(s, RLOO) else 1)
    if s.batch_size % together:
        raise MannersError(
            f"method.batch_size={s.batch_size} cannot be shared out among {world.size} processes: it must be a "
            f"multiple of {together}."
        )


def refuse_alone() -> None:
    """accelerate launch that was asked for several processes and started one, without a word, as it does on a CPU."""
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        raise MannersError(
            "accelerate launch was asked for several processes and has started one: it starts several on GPUs only. "
            "Here it is torchrun --nproc-per-node N train.py, with your options after it."
        )
