"""One sweep: ``python train.py -m …``. Hydra calls it through ``hydra_plugins.manners_sweeper``."""

import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from manners.config.compose import expand_home
from manners.config.overrides import override_key, quoted_override
from manners.errors import MannersError
from manners.pipeline import dependencies
from manners.runtime import run_dir
from manners.sweep import jobs, report, space
from manners.sweep.jobs import SweepJob
from manners.sweep.parent import SweepRun
from manners.sweep.space import Choice

IN_PROCESS = "BasicLauncher"  # Hydra's own, the default
console = Console(soft_wrap=True, highlight=False)


def run_sweep(cfg: DictConfig, arguments: list[str], launcher: Any) -> None:
    """Run the jobs that have not ended yet, and report on all. Exits with 1 where some failed."""
    settings, cfg = cfg.hydra, OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    expand_home(cfg)
    for key in ("policy_from", "reward_from"):
        if cfg[key] == "latest":
            raise MannersError(
                f"{key}=latest: the jobs of a sweep would start from each other. Name the run: {key}=RUN."
            )
    fixed, dimensions = space.read_space(
        space.parse_arguments([a for a in arguments if not is_sweep_option(a)]), cfg.sweep.space
    )
    known = group_choices(settings) | {override_key(o): o.partition("=")[2] for o in fixed}
    at_once = jobs_at_once(settings.launcher)
    with acquire_sweep_dir(cfg, fixed, dimensions) as folder, SweepRun(cfg, folder, arguments) as parent:
        if cfg.sweep.sampler == "grid":
            choices = space.expand_grid(dimensions, known)
            batches, planned = jobs.grid_batches(choices, at_once or len(choices)), len(choices)
        else:
            from manners.sweep.search import Search  # Optuna takes a second to import

            search = Search(cfg, dimensions, known, folder / "journal.log")
            batches, planned = (
                jobs.search_batches(search, at_once or 1),
                len(search.ended()) + max(0, search.num_remaining),
            )
        console.print(f"[bold]{folder.name}[/]: {planned} jobs, {cfg.sweep.sampler}")
        done = run_batches(cfg, batches, planned, fixed, launcher, folder, parent)
        report.write_sweep_report(cfg, done, folder, shlex.join(fixed), parent)
    failed = [job for job in done if job.status == "failed"]
    for job in failed:
        print(f"failed: {job.name}: {job.error}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {planned} jobs failed; the same command tries these again.", file=sys.stderr)
        sys.exit(1)


def run_batches(
    cfg: DictConfig,
    batches: Iterator[list[SweepJob]],
    planned: int,
    fixed: list[str],
    launcher: Any,
    folder: Path,
    parent: SweepRun,
) -> list[SweepJob]:
    """Run each batch, less the jobs that ended before; stop where ``sweep.max_failures`` is exceeded."""
    done: list[SweepJob] = []
    last: SweepJob | None = None
    started, trained = time.monotonic(), 0
    for batch in batches:
        for job in batch:
            try:
                jobs.resolve_job(job, fixed, last)
            except MannersError as error:  # values that are valid with the first of the others, but not with each other
                job.status, job.error = "failed", str(error)
                continue
            last = job
            job.already_done = bool(cfg.resume) and jobs.load_result(job, cfg.output_dir)
        todo = [job for job in batch if not job.already_done and job.status != "failed"]
        for i, job in enumerate(batch, start=len(done) + 1):
            state = f"ended before: {job.run}" if job.already_done else ""
            left = format_eta(time.monotonic() - started, trained, planned - i + 1) if trained else ""
            console.rule(f"job {i} of {planned}: {job.name}  [dim]{state or left}[/]", align="left")
        if todo:
            launch_jobs(cfg, todo, launcher, len(done), folder, parent)
            trained += len(todo)
        done += batch
        failures = sum(job.status == "failed" for job in done)
        if cfg.sweep.max_failures is not None and failures > cfg.sweep.max_failures:
            print(f"stopped: {failures} jobs failed, sweep.max_failures={cfg.sweep.max_failures}", file=sys.stderr)
            break
    batches.close()  # type: ignore[attr-defined]
    return done


def launch_jobs(
    cfg: DictConfig, todo: list[SweepJob], launcher: Any, number: int, folder: Path, parent: SweepRun
) -> None:
    """Run ``todo`` by Hydra's launcher. The results are read from the run directories, wherever the jobs ran."""
    if type(launcher).__name__ == IN_PROCESS:  # Hydra loads its plugins twice, so there are two such classes
        errors = [run_in_process(job, sweep_values(cfg, job, folder, parent), launcher.task_function) for job in todo]
    else:
        commands = []
        for job in todo:
            values = sweep_values(cfg, job, folder, parent)
            assert job.spec is not None
            settings = [quoted_override(f"sweep.{key}", value) for key, value in values.items()]
            commands.append([*job.spec.overrides, *settings])
        try:
            returned = list(launcher.launch(commands, initial_job_idx=number))
            errors = [r._return_value if isinstance(r._return_value, Exception) else None for r in returned]
        except Exception as lost:  # noqa: BLE001  the launcher lost a process; other jobs may have ended
            errors = [lost] * len(todo)
    for job, error in zip(todo, errors, strict=True):
        if not jobs.load_result(job, cfg.output_dir):
            job.status = "failed"
            job.error = f"{error or 'it ended without a result'}".strip().split("\n")[0]


def sweep_values(cfg: DictConfig, job: SweepJob, folder: Path, parent: SweepRun) -> dict[str, Any]:
    """The options by which a job knows its sweep."""
    if job.trial is None:
        return {"parent": parent.run_id}
    journal = str(folder / "journal.log")
    return {"parent": parent.run_id, "trial": job.trial, "journal": journal, "pruner": cfg.sweep.pruner}


def run_in_process(job: SweepJob, values: dict[str, Any], task: Any) -> Exception | None:
    """Run the job here, planned as it is: Hydra's own launcher would compose its config once more."""
    assert job.spec is not None
    cfg = deepcopy(job.spec.cfg)
    OmegaConf.update(cfg, "sweep", values)
    try:
        task(cfg, replace(job.spec, cfg=cfg))
    except Exception as error:  # noqa: BLE001  the other jobs go on
        return error
    return None


def is_sweep_option(argument: str) -> bool:
    """Whether it is an option of the sweep itself, which its jobs do not get. Only the best job is registered."""
    return override_key(argument).split(".")[0] in ("sweep", "register_model")


def group_choices(settings: DictConfig) -> Choice:
    """The choice of each config group, which conditions of the space may ask for."""
    return {key: str(value) for key, value in settings.runtime.choices.items() if not key.startswith("hydra/")}


def jobs_at_once(launcher: DictConfig) -> int:
    """How many jobs the launcher runs at once; 1 in this process, 0 for as many as there are."""
    if launcher._target_.endswith(IN_PROCESS):
        return 1
    number = launcher.get("n_jobs") or launcher.get("array_parallelism") or 0
    return int(number) if number >= 0 else os.cpu_count() or 1


def format_eta(seconds: float, trained: int, left: int) -> str:
    """The time that the remaining jobs take, at the mean duration of those that ran."""
    minutes = seconds / trained * left / 60
    return f"about {minutes:.0f} min left" if minutes >= 1 else "less than a minute left"


@contextmanager
def acquire_sweep_dir(cfg: DictConfig, fixed: list[str], dimensions: list[space.Dimension]) -> Iterator[Path]:
    """The directory of the sweep: the same command finds the same one. Raises MannersError where it is running."""
    plan = {"sweep": OmegaConf.to_container(cfg.sweep), "varied": [str(d) for d in dimensions], "fixed": sorted(fixed)}
    if cfg.sweep.sampler != "grid":  # its journal has metrics of trials, which are of this data, base and rewards
        with suppress(MannersError):  # what is varied may be what is missing
            plan["contents"] = dependencies.contents_of(cfg)
    name = re.sub(r"[^\w.-]+", "-", f"{cfg.experiment_name}-{cfg.method.name}")
    path = Path(cfg.output_dir) / "sweeps" / f"{name}-{run_dir.hash_config(cfg, run_dir.RUN_KEYS, plan)[:8]}"
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / "lock")
    if not run_dir.try_lock(lock):
        raise MannersError(f"this very sweep is running already, in {path}: wait for it, or change what it varies.")
    try:
        yield path.resolve()
    finally:
        lock.release()
