"""How many parts a run's rows are read in, so that it fits: the same steps, up to rounding, in less memory.

The optimizer's batch is the experiment's business; how much of it is in memory at once is the machine's.
"""

from collections.abc import Callable
from math import gcd
from typing import Protocol, TypeVar

from omegaconf import DictConfig

from manners.chain import Stage
from manners.hardware import Device
from manners.models import base

WORTH_A_LOOK = 10**8  # bytes of weights; with less, to foresee takes longer than it could spare
FEWEST = 256  # token slots of a micro-batch


class Sized(Protocol):
    @property
    def total(self) -> int: ...


Found = TypeVar("Found", bound=Sized)


def settle(stage: Stage, device: Device, needs: list[Stage], say: Callable[..., None]) -> int:
    """What ``hardware.parts`` means for a run on this machine. Says so where that is more than one."""
    cfg = stage.cfg
    if cfg.hardware.parts != "auto":
        return int(cfg.hardware.parts)
    if base.weight_bytes(cfg.model.name) < WORTH_A_LOOK or cfg.method.name == "dpo":
        return 1
    from manners.fits import answer  # what imagines tensors, which small runs need not wait for

    room, _ = answer.memory(device)
    chosen, found = answer.smallest(cfg, device, stage, answer.reward_config(needs), room)
    size, there = answer.gb(found.total), answer.gb(room)
    if found.total > room:
        say(f"it may not fit: {size} GB are foreseen, and there are {there}. What would make it fit: fit=true")
    elif chosen > 1:
        say(f"rows are read in {chosen} parts, to fit into {there} GB (hardware.parts): the steps stay the same")
    return chosen


def apart(cfg: DictConfig, parts: int) -> DictConfig:
    """The config with fewer rows at a time. Those that train, ``data.batches`` divides; the others are divided here."""
    lean = cfg.copy()
    lean.hardware.parts = parts
    m = lean.method
    lean.evaluation.batch_size = max(1, cfg.evaluation.batch_size // parts)
    for key, least in (("per_device_eval_batch_size", 1), ("micro_batch_tokens", FEWEST)):
        if key in m:
            m[key] = max(min(m[key], least), m[key] // parts)
    if m.name == "dpo":  # TRL's trainer takes the mean over micro-batches, so they must be of one size
        equal = gcd(m.per_device_train_batch_size, parts)
        m.per_device_train_batch_size //= equal
        m.gradient_accumulation_steps *= equal
    return lean


def counts(cfg: DictConfig) -> list[int]:
    """2, 4, 8, ... parts, up to where there is nothing left to divide."""
    m = cfg.method
    rows = [m.get("per_device_train_batch_size", 1), m.get("per_device_eval_batch_size", 1), cfg.evaluation.batch_size]
    most = max(*rows, m.get("micro_batch_tokens", 1) // FEWEST)
    return [2**i for i in range(1, most.bit_length()) if 2**i <= most]


def fewest(cfg: DictConfig, foresee: Callable[[DictConfig], Found], room: int) -> tuple[int, Found]:
    """The fewest parts with which a run fits into ``room`` bytes, and what is foreseen then; 1 where none would do."""
    whole = foresee(apart(cfg, 1))
    if whole.total > room:
        for parts in counts(cfg):
            found = foresee(apart(cfg, parts))
            if found.total <= room:
                return parts, found
    return 1, whole
