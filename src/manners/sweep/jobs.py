"""The jobs of a sweep: what each is to run, and what became of it, which the run folders know."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from manners.config import compose, validate
from manners.pipeline import dependencies
from manners.pipeline.dependencies import Stage
from manners.runtime import run_dir
from manners.sweep.space import Choice, choice_overrides

if TYPE_CHECKING:  # Optuna takes a second to import, which a grid need not wait for
    from manners.sweep.search import Search


@dataclass
class SweepJob:
    choice: Choice  # in what it differs from the others
    trial: int | None = None  # of a search
    typed: list[str] = field(default_factory=list)  # its command
    cfg: Any = None  # what that composes to
    fingerprint: str = ""
    status: str = "waiting"  # then finished, pruned or failed
    metric: float | None = None
    seconds: float | None = None
    run: str = ""
    run_id: str = ""
    summary: str = ""
    error: str = ""
    again: bool = field(default=False)  # it had ended before this sweep was started

    @property
    def name(self) -> str:
        return " ".join(choice_overrides(self.choice)) or "the only one"


def grid_batches(choices: list[Choice], at_once: int) -> Iterator[list[SweepJob]]:
    """A grid's jobs, as many together as the launcher runs at once."""
    remaining = iter(choices)
    while chunk := list(islice(remaining, at_once)):
        yield [SweepJob(choice) for choice in chunk]


def search_batches(search: "Search", at_once: int) -> Iterator[list[SweepJob]]:
    """A search's jobs: those of before, then each batch is proposed in the light of all that have ended."""
    if before := [SweepJob(choice) for choice in search.ended()]:
        yield before
    while (left := search.left) > 0:
        jobs = [SweepJob(choice, trial) for trial, choice in (search.ask() for _ in range(min(at_once, left)))]
        yield jobs
        for job in jobs:
            assert job.trial is not None
            search.tell(job.trial, job.status, job.metric)


def resolve_job(job: SweepJob, fixed: list[str], like: SweepJob | None = None) -> None:
    """Its config and fingerprint: those of its command typed alone. Raises MannersError for one that cannot work.

    ``like`` is a job that has its config already, of which this one's may differ in values only.
    """
    job.typed = [*fixed, *choice_overrides(job.choice)]
    if like and like.choice.keys() == job.choice.keys():
        job.cfg = compose.with_values(like.cfg, choice_overrides(job.choice))
    job.cfg = cfg = job.cfg or compose.compose("train", job.typed)
    validate.validate_config(cfg)
    stage = Stage(cfg, job.typed)
    marks = {need.role: dependencies.dependency_fingerprint(need) for need in compose.dependencies(cfg, job.typed)}
    job.fingerprint = run_dir.run_fingerprint(cfg, stage.digest, marks)


def load_result(job: SweepJob, output_dir: str) -> bool:
    """Whether a run with the job's fingerprint has ended well; then the job knows its result."""
    found = run_dir.find_ended(output_dir, job.fingerprint)
    if found is None:
        return False
    folder, state = found
    job.status, job.run, job.run_id = state["status"], folder.name, state.get("mlflow_run_id", "")
    job.metric, job.summary, job.seconds = state.get("metric"), state.get("summary", ""), state.get("seconds")
    if job.status == "finished" and (job.metric is None or not math.isfinite(job.metric)):
        job.status, job.error = "failed", f"its metric is {job.metric}"
    return True
