"""The processes that train together: which rows are ours, and sums over all. accelerate does the talking."""

import os
from dataclasses import dataclass
from typing import Any

import torch


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


def join(device: str) -> World:
    """The world that ``torchrun`` or ``accelerate launch`` started us in. ``device`` is "cpu", "cuda" or "mps"."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    from accelerate import Accelerator

    if device == "cpu":  # torchrun on a CPU would otherwise run undistributed, without a word
        os.environ["ACCELERATE_USE_CPU"] = "true"
    accelerator = Accelerator(cpu=device == "cpu")
    return World(accelerator.process_index, accelerator.num_processes, accelerator)
