"""``estimate=true``: whether a run fits into the memory there is, how long it takes, and what would make it fit."""

import sys

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from manners.config import compose, validate
from manners.errors import MannersError
from manners.fits import advice, dividing, foresight, probe
from manners.fits.foresight import Foreseen, gb
from manners.fits.probe import Measured
from manners.pipeline.dependencies import Stage
from manners.runtime.device import Device, resolve_device

METHODS = ("sft", "reward", "ppo", "rloo")
WORTH = 0.99  # a remedy that spares less than a hundredth is none


def show(stage: Stage, needs: list[Stage], console: Console) -> bool:
    """Print the answer, which is returned too. Nothing is trained, and no run is made."""
    cfg = stage.cfg
    if cfg.method.name not in METHODS:
        raise MannersError(f"estimate=true answers for method={', '.join(METHODS)}: of {cfg.method.name} it knows nothing.")
    if not stage.splits.validation and not stage.splits.test:
        raise MannersError("no rows are held out: set dataset.validation_share above 0, or add rows.")
    beside = foresight.reward_config(needs)
    device, here = wanted(cfg)
    room, free = foresight.memory(device) if here else (sys.maxsize, 0)
    with console.status("foreseeing the fullest moment"):
        count, found = foresight.smallest(cfg, device, stage, beside, room)
    measured = None
    if found.total <= min(room, free):
        with console.status("measuring two steps on the longest rows"):
            measured = probe.probe(dividing.apart(cfg, count), stage.splits, beside)
    table(console, cfg, device, found, measured)
    if cfg.hardware.parts == "auto" and count > 1:
        console.print(f"with its rows read in {count} parts, as hardware.parts=auto has it: the same steps")
    if not here:
        console.print(f"there is no {device.kind} device here: compare with the memory of the one you mean.")
        return True
    console.print(f"this machine has {gb(room)} GB, of which {gb(free)} GB are free", highlight=False)
    if measured:
        console.print(duration(found, measured), highlight=False, soft_wrap=True)
    elif found.total <= room:
        console.print("the probe was not run: it may need more than what is free now")
    else:
        console.print("the probe was not run: it would not fit")
    fits = (measured.peak if measured else found.total) <= room
    console.print("it fits" if fits else "it does not fit", style="bold green" if fits else "bold red")
    if not fits:
        spare(console, stage, device, beside, found, room)
    return fits


def wanted(cfg: DictConfig) -> tuple[Device, bool]:
    """The device that the config asks for, and whether it is in this machine."""
    h = cfg.hardware
    if h.accelerator == "cuda" and not torch.cuda.is_available():
        return Device("cuda", "bf16" if h.precision == "auto" else h.precision), False
    return resolve_device(h.accelerator, h.precision, h.num_threads), True


def spare(
    console: Console, stage: Stage, device: Device, beside: DictConfig | None, found: Foreseen, room: int
) -> None:
    """Print the overrides that would make it fit, as few and as cheap as will do; each has been foreseen."""
    chosen: dict[str, str] = {}
    for overrides in advice.remedies(stage.cfg):
        trial = chosen | overrides
        kept = [o for o in stage.overrides if compose.override_key(o) not in trial]
        try:
            cfg = compose.compose("train", [*kept, *(f"{key}={value}" for key, value in trial.items())])
            validate.validate_config(cfg)
        except MannersError:
            continue  # the config does not go with this one
        _, smaller = foresight.smallest(cfg, device, stage, beside, room)
        if smaller.total < WORTH * found.total:
            chosen, found = trial, smaller
        if found.total <= room:
            break
    words = "add to the command" if found.total <= room else "not even this would be enough"
    console.print(f"{words}: {advice.listed(chosen)}  ({gb(found.total)} GB)", highlight=False, soft_wrap=True)


def table(console: Console, cfg: DictConfig, device: Device, found: Foreseen, measured: Measured | None) -> None:
    console.print(
        f"{cfg.method.name}, {cfg.model.name}, {cfg.adapter.kind}, on {device.kind}, {device.number_format}; GB of "
        f"memory at the fullest, which is in {found.phase}:",
        highlight=False,
        soft_wrap=True,
    )
    made = Table.grid(padding=(0, 2))
    made.add_column()
    made.add_column(justify="right")
    for name, size in found.parts.most_common():
        if size >= 5 * 10**5:
            made.add_row(name, gb(size))
    made.add_row("foreseen", gb(found.total), style="bold")
    if measured:
        made.add_row("measured, in two steps on the longest rows", gb(measured.peak), style="bold")
    console.print(made, highlight=False)


def duration(found: Foreseen, measured: Measured) -> str:
    whole = found.steps * measured.seconds
    return (
        f"time, less evaluation: at most {clock(whole)} ({found.steps:,} steps of {measured.seconds:.2f} s on the "
        f"longest rows); with rows of their mean length about {clock(whole * found.share)}"
    )


def clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
