"""The report of ``estimate=true``: memory by parts, what two steps need, the time, and what would make the run fit."""

import sys
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table

from manners.config import compose, validate
from manners.config.compose import RunSpec
from manners.config.overrides import override_key
from manners.errors import MannersError
from manners.estimate import profile
from manners.estimate.memory import MemoryEstimate, estimate_peak_memory, reward_config
from manners.estimate.profile import Profile
from manners.estimate.worst_case import WorstCaseBatch, worst_case_batch
from manners.methods import microbatching
from manners.methods.microbatching import rows_per_device, suggest_overrides
from manners.models import memory
from manners.pipeline import dependencies
from manners.pipeline.stages import context
from manners.pipeline.stages.context import RunContext, configured_tokenizer, device_of, total_steps
from manners.runtime.device import Device
from manners.runtime.run_dir import RunDir
from manners.tracking.logger import NullLogger

METHODS = ("sft", "reward", "ppo", "rloo")
WORTHWHILE = 0.99  # an override that saves less than a hundredth is not suggested


def report(spec: RunSpec, console: Console = context.console) -> None:
    """Print whether the run fits, how long it takes, and what would make it fit. Nothing is trained.

    Raises MannersError for a method without an estimate, and where the profiling process fails.
    """
    cfg = spec.cfg
    if cfg.method.name not in METHODS:
        raise MannersError(f"estimate=true works for method={', '.join(METHODS)}, not for {cfg.method.name}.")
    splits, reward_cfg = dependencies.usable_splits_of(cfg), reward_config(spec)
    device, is_here = requested_device(cfg)
    total, free = memory.device_memory(device) if is_here else (sys.maxsize, 0)
    worst = worst_case(cfg, device)
    rows = choose_rows(cfg, device, worst, reward_cfg, total)
    estimate = estimate_peak_memory(cfg, device, worst, rows, reward_cfg)
    with console.status("measuring two steps on the longest rows"):
        measured = profile.profile(cfg, splits, rows, reward_cfg) if estimate.total <= min(total, free) else None
    _print_table(console, cfg, device, estimate, measured)
    if cfg.method.sample_type != "prompt" and rows < rows_per_device(cfg):
        console.print(f"with hardware.microbatch_size={rows}: the optimizer steps are those of the whole batch")
    if not is_here:
        return console.print(f"there is no {device.kind} device here: compare with the memory of yours.")
    console.print(f"this machine has {_gigabytes(total)} GB, of which {_gigabytes(free)} GB are free", highlight=False)
    time = (
        _duration(cfg, worst, measured) if measured else "two steps were not measured: they may need more than is free"
    )
    console.print(time, highlight=False, soft_wrap=True)
    if (measured.peak if measured else estimate.total) <= total:
        return console.print("it fits", style="bold green")
    console.print("it does not fit", style="bold red")
    _print_suggestions(console, spec, device, reward_cfg, estimate, total)


def requested_device(cfg: DictConfig) -> tuple[Device, bool]:
    """The device that the config asks for, and whether this machine has it."""
    if (h := cfg.hardware).accelerator == "cuda" and not torch.cuda.is_available():
        return Device("cuda", "bf16" if h.precision == "auto" else h.precision), False
    return device_of(cfg), True


def worst_case(cfg: DictConfig, device: Device) -> WorstCaseBatch:
    """The longest rows of a config, as its method tokenizes them."""
    splits = dependencies.usable_splits_of(cfg)
    return worst_case_batch(RunContext(cfg, splits, device, RunDir(Path()), NullLogger()), configured_tokenizer(cfg))


def choose_rows(
    cfg: DictConfig, device: Device, worst: WorstCaseBatch, reward_cfg: DictConfig | None, available: int
) -> int:
    """The microbatch that a run would use, by the tokens of its rows: a run itself guesses them from the text."""
    if cfg.hardware.microbatch_size != "auto" or cfg.method.sample_type == "prompt":
        return microbatching.resolve_microbatch_size(cfg, device, dependencies.usable_splits_of(cfg))
    for rows in (sizes := microbatching.split_sizes(rows_per_device(cfg), cfg)):
        if estimate_peak_memory(cfg, device, worst, rows, reward_cfg).total <= available:
            return rows
    return sizes[0]


def _print_suggestions(
    console: Console, spec: RunSpec, device: Device, reward_cfg: DictConfig | None, estimate: MemoryEstimate, total: int
) -> None:
    """Print the overrides that would make the run fit: the cheapest, and no more than needed."""
    worst = worst_case(spec.cfg, device)
    chosen: dict[str, str] = {}
    for overrides in suggest_overrides(spec.cfg):
        trial = chosen | overrides
        kept = [o for o in spec.overrides if override_key(o) not in trial]
        try:
            cfg = compose.compose("train", [*kept, *(f"{key}={value}" for key, value in trial.items())])
            validate.validate_config(cfg)
        except MannersError:
            continue  # the rest of the config does not allow this one
        worst = worst_case(cfg, device) if any("length" in key for key in overrides) else worst
        rows = choose_rows(cfg, device, worst, reward_cfg, total)
        smaller = estimate_peak_memory(cfg, device, worst, rows, reward_cfg)
        if smaller.total < WORTHWHILE * estimate.total:
            chosen, estimate = trial, smaller
        if estimate.total <= total:
            break
    start = "add to the command" if estimate.total <= total else "not even this would be enough"
    text = microbatching.format_overrides(chosen)
    console.print(f"{start}: {text}  ({_gigabytes(estimate.total)} GB)", soft_wrap=True)


def _print_table(
    console: Console, cfg: DictConfig, device: Device, estimate: MemoryEstimate, measured: Profile | None
) -> None:
    run = f"{cfg.method.name}, {cfg.model.name}, {cfg.adapter.kind}, on {device.kind}, {device.number_format}"
    console.print(f"{run}; peak memory in GB, reached in {estimate.phase}:", highlight=False, soft_wrap=True)
    table = Table("", Column(justify="right"), box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, size in estimate.parts.most_common():
        table.add_row(name, _gigabytes(size))
    table.add_row("estimated", _gigabytes(estimate.total), style="bold")
    if measured:
        table.add_row("measured in two steps on the longest rows", _gigabytes(measured.peak), style="bold")
    console.print(table, highlight=False)


def _duration(cfg: DictConfig, worst: WorstCaseBatch, measured: Profile) -> str:
    m, is_online = cfg.method, cfg.method.sample_type == "prompt"
    steps = -(-m.total_episodes // m.batch_size) if is_online else total_steps(cfg, worst.num_rows)
    seconds = steps * measured.seconds
    return (
        f"time without evaluation: at most {_format_seconds(seconds)} ({steps:,} steps of {measured.seconds:.2f} s on "
        f"the longest rows); with rows of mean length about {_format_seconds(seconds * worst.mean_length)}"
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _format_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
