"""How many parts the rows of a run are read in, so that it fits into this machine."""

from collections.abc import Callable

from manners.models import loading
from manners.pipeline.dependencies import Stage
from manners.runtime.device import Device

WORTH_A_LOOK = 10**8  # bytes of weights; with less, to foresee takes longer than it could spare


def settle(stage: Stage, device: Device, needs: list[Stage], say: Callable[..., None]) -> int:
    """What ``hardware.parts`` means for a run on this machine. Says so where that is more than one."""
    cfg = stage.cfg
    if cfg.hardware.parts != "auto":
        return int(cfg.hardware.parts)
    if loading.weight_bytes(cfg.model.name) < WORTH_A_LOOK or cfg.method.name == "dpo":
        return 1
    from manners.fits import foresight  # what imagines tensors, which small runs need not wait for

    room, _ = foresight.memory(device)
    chosen, found = foresight.smallest(cfg, device, stage, foresight.reward_config(needs), room)
    size, there = foresight.gb(found.total), foresight.gb(room)
    if found.total > room:
        say(f"it may not fit: {size} GB are foreseen, and there are {there}. What would make it fit: estimate=true")
    elif chosen > 1:
        say(f"rows are read in {chosen} parts, to fit into {there} GB (hardware.parts): the steps stay the same")
    return chosen
