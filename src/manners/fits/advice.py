"""What makes a run smaller, cheapest first; and what to say when memory has run out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig

from manners.errors import MannersError
from manners.fits import dividing

WORDS = ("not enough memory", "out of memory", "can't allocate memory")  # torch's, on a CPU and elsewhere
SHORTEST = 64  # tokens: a shorter conversation is hardly one


def remedies(cfg: DictConfig) -> Iterator[dict[str, str]]:
    """Overrides that spare memory, in the order of what they cost.

    First what leaves the result as it is, up to rounding: fewer rows at a time. Then what takes time
    (recomputing), a little precision (8 bits), and last what is another experiment: an adapter, or less to read.
    """
    m, divided = cfg.method, 1 if cfg.hardware.parts == "auto" else cfg.hardware.parts
    for count in dividing.counts(cfg):
        if count > divided:
            yield {"hardware.parts": str(count)}
    if not m.gradient_checkpointing:
        yield {"method.gradient_checkpointing": "true"}
    if cfg.method.optim == "adamw_torch_fused" and cfg.hardware.accelerator != "mps":
        yield {"method.optim": "paged_adamw_8bit"}
    if cfg.adapter.kind == "none" and cfg.method.get("critic") != "adapter":
        yield {"adapter": "lora"}
    if cfg.adapter.kind != "qlora" and cfg.model.decoder and cfg.hardware.accelerator != "mps":
        yield {"adapter": "qlora"}
    for key in ("max_length", "max_prompt_length", "response_length"):
        yield from halves(f"method.{key}", m.get(key, 0), SHORTEST)


def halves(key: str, value: int, least: int) -> Iterator[dict[str, str]]:
    while value // 2 >= least:
        value //= 2
        yield {key: str(value)}


def listed(overrides: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in overrides.items())


def first_of_each(cfg: DictConfig) -> list[str]:
    """The first step of each kind, as it is typed."""
    found: dict[str, str] = {}
    for overrides in remedies(cfg):
        found.setdefault(next(iter(overrides)), listed(overrides))
    return list(found.values())


@contextmanager
def out_of_memory(cfg: DictConfig) -> Iterator[None]:
    """Within, memory that has run out is answered with what would have spared it. Raises MannersError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and not any(words in str(error).lower() for words in WORDS):
            raise
        raise MannersError(
            f"out of memory in method={cfg.method.name} of {cfg.model.name}. Add to the command, the cheapest first:\n"
            + "\n".join(f"  {words}" for words in first_of_each(cfg))
            + "\nfit=true says which of them are enough, and trains nothing."
        ) from None
