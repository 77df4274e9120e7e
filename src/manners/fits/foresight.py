"""The fullest moment of a run before it is one: its memory by parts, and the parts that its rows must be read in."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from omegaconf import DictConfig

from manners.fits import dividing, probe, rehearsal
from manners.fits.ledger import DECODING, LOGITS
from manners.fits.rehearsal import ACTIVATIONS
from manners.pipeline.dependencies import Stage, resolve_explicit
from manners.pipeline.stages.context import RunContext
from manners.runtime.device import Device
from manners.runtime.run_dir import RunDir
from manners.tracking.logger import NullLogger

RUNTIME, SLACK = "Python and libraries", "holes that the allocator keeps"
CONTEXT = 5 * 10**8  # bytes that CUDA and its kernels take before anything is loaded, about
# On a CPU the C library keeps what is freed in the middle of its heap, and what comes next seldom fits into the holes.
# Measured, not derived (experiments/memory.md): the holes of a step are so much of what comes and goes in it; and
# decoding leaves as much as it ever held beside its cache.
HOLES = 0.4
AT_WORK = 45 * 10**6  # bytes of code and buffers that the libraries load when they first train


@dataclass(frozen=True)
class Foreseen:
    """Bytes by part, at the run's fullest moment, and the phase of the run that it is in."""

    parts: Counter[str]
    phase: str
    steps: int
    share: float  # mean length of a row over the longest

    @property
    def total(self) -> int:
        return self.parts.total()


def smallest(
    cfg: DictConfig, device: Device, stage: Stage, beside: DictConfig | None, room: int
) -> tuple[int, Foreseen]:
    """The parts that rows are to be read in, and what is foreseen then."""
    if cfg.hardware.parts == "auto":
        return dividing.fewest(cfg, lambda lean: foresee(lean, stage, device, beside), room)
    count = int(cfg.hardware.parts)
    return count, foresee(dividing.apart(cfg, count), stage, device, beside)


def foresee(cfg: DictConfig, stage: Stage, device: Device, beside: DictConfig | None) -> Foreseen:
    run = RunContext(cfg, stage.splits, device, RunDir(Path(), {}), NullLogger())
    played = rehearsal.rehearse(run, beside)
    phase, parts = max(played.ledger.peaks.items(), key=lambda item: item[1].total())
    if device.kind == "cuda":
        more = {RUNTIME: CONTEXT}
    else:
        probe.warm_up()
        more = {RUNTIME: probe.resident() + AT_WORK, SLACK: holes(parts, played.ledger.peaks)}
    return Foreseen(parts + Counter(more), phase, played.steps, played.share)


def holes(parts: Counter[str], peaks: dict[str, Counter[str]]) -> int:
    return round(HOLES * (parts[ACTIVATIONS] + parts[LOGITS])) + max(peak[DECODING] for peak in peaks.values())


def reward_config(needs: list[Stage]) -> DictConfig | None:
    """What made the reward model that a run needs, or will make it; of a folder that is not ours, its place."""
    need = next((need for need in needs if need.role == "reward"), None)
    if need is None:
        return None
    if not need.given:
        return need.cfg
    found = resolve_explicit(need)
    made_by = found.config or need.cfg.copy()
    if not (found.model / "adapter_config.json").exists():  # an adapter's run names its base
        made_by.model.name, made_by.model.revision = str(found.model), None
    return made_by


def memory(device: Device) -> tuple[int, int]:
    """Bytes that there are, and that are free: of the GPU, or of the machine, or of the container that we are in."""
    if device.kind == "cuda":
        free, room = torch.cuda.mem_get_info()
        return room, free
    machine = psutil.virtual_memory()
    room, free = machine.total, machine.available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (written := limit.read_text().strip()) != "max":
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        room, free = min(room, int(written)), min(free, int(written) - used)
    return room, free


def gb(size: float) -> str:
    return f"{size / 1e9:.2f}"
