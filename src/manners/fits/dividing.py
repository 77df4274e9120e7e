"""Rows read in parts: the same steps, up to rounding, in less memory.

The optimizer's batch is the experiment's business; how much of it is in memory at once is the machine's.
"""

from collections.abc import Callable
from math import gcd
from typing import Protocol, TypeVar

from omegaconf import DictConfig

FEWEST = 256  # token slots of a micro-batch


class Sized(Protocol):
    @property
    def total(self) -> int: ...


Found = TypeVar("Found", bound=Sized)


def apart(cfg: DictConfig, parts: int) -> DictConfig:
    """The config with fewer rows at a time. Those that train, ``data.batches`` divides; the others are divided here."""
    lean = cfg.copy()
    lean.hardware.parts = parts
    m = lean.method
    lean.evaluation.batch_size = max(1, cfg.evaluation.batch_size // parts)
    for key, least in (("per_device_eval_batch_size", 1), ("microbatch_tokens", FEWEST)):
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
    most = max(*rows, m.get("microbatch_tokens", 1) // FEWEST)
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
