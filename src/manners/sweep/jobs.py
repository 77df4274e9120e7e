"""The jobs of a sweep: what each runs, how it ended, and the ranking of configurations over their seeds."""

import math
import statistics
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from manners.config.compose import RunSpec, plan_run
from manners.config.written_text import quote_text, text_options
from manners.pipeline import dependencies
from manners.runtime import run_dir
from manners.sweep.space import Choice, choice_overrides

if TYPE_CHECKING:  # Optuna takes a second to import, which a grid need not wait for
    from manners.sweep.search import Search


@dataclass
class SweepJob:
    """One job: its choice of values, its run, and how that ended."""

    choice: Choice  # the values that differ between jobs
    trial: int | None = None  # of a search
    spec: RunSpec | None = None
    fingerprint: str = ""  # of its run
    status: str = "waiting"  # then finished, pruned or failed
    metric: float | None = None
    seconds: float | None = None
    run: str = ""  # name of its run
    run_id: str = ""
    summary: str = ""
    error: str = ""
    already_done: bool = False  # it had ended before this sweep was started

    @property
    def name(self) -> str:
        """The overrides of its choice."""
        return " ".join(choice_overrides(self.choice)) or "the only one"


def grid_batches(choices: list[Choice], jobs_at_once: int) -> Iterator[list[SweepJob]]:
    """The jobs of a grid, in batches of as many as the launcher runs at once."""
    remaining = iter(choices)
    while chunk := list(islice(remaining, jobs_at_once)):
        yield [SweepJob(choice) for choice in chunk]


def search_batches(search: "Search", jobs_at_once: int) -> Iterator[list[SweepJob]]:
    """The jobs of a search: the earlier ones, then batches that are proposed in the light of all that have ended."""
    if earlier := [SweepJob(choice) for choice in search.ended()]:
        yield earlier
    while (remaining := search.num_remaining) > 0:
        jobs = [
            SweepJob(choice, trial) for trial, choice in (search.ask() for _ in range(min(jobs_at_once, remaining)))
        ]
        yield jobs
        for job in jobs:
            assert job.trial is not None
            search.tell(job.trial, job.status, job.metric)


def resolve_job(job: SweepJob, fixed: list[str], like: SweepJob | None = None) -> None:
    """Plan the run of a job, and find its fingerprint. Raises MannersError for a job that cannot work.

    ``like`` is a planned job, from whose config this one's may differ in values only.
    """
    overrides = [*fixed, *choice_overrides(job.choice)]
    cfg = None
    if like and like.spec and like.choice.keys() == job.choice.keys():
        cfg = with_values(like.spec.cfg, choice_overrides(job.choice))
    job.spec = spec = plan_run(overrides, cfg)
    for one in (spec, *spec.dependencies):
        if not one.explicit_source:
            dependencies.check_rows(one)
    fingerprints = {need.role: dependencies.dependency_fingerprint(need) for need in spec.dependencies}
    job.fingerprint = run_dir.run_fingerprint(spec.cfg, dependencies.contents_of(spec.cfg), fingerprints)


def with_values(cfg: DictConfig, overrides: list[str]) -> DictConfig | None:
    """``cfg`` with other values for keys that its own command set too, without composing it anew.

    None where that is not the same: a choice from a config group brings more than a value, and a refused value brings a
    reason.
    """
    loader, changed = GlobalHydra.instance().config_loader(), deepcopy(cfg)
    options = set(text_options(OmegaConf.get_type(cfg)))
    for override in OverridesParser.create(loader).parse_overrides([quote_text(o, options) for o in overrides]):
        key, value = override.key_or_group, override.value()
        if loader.get_group_options(key) or not isinstance(value, bool | int | float | str):
            return None
        try:
            OmegaConf.update(changed, key, value)
        except OmegaConfBaseException:
            return None
    return changed


def load_result(job: SweepJob, output_dir: str) -> bool:
    """Whether a run with the fingerprint of the job has ended well; its result is then copied to the job."""
    ended = run_dir.find_ended(output_dir, job.fingerprint)
    if ended is None:
        return False
    path, state = ended
    job.status, job.run, job.run_id = state.status, path.name, state.mlflow_run_id
    job.metric, job.summary, job.seconds = state.metric, state.summary, state.seconds or None
    if job.status == "finished" and (job.metric is None or not math.isfinite(job.metric)):
        job.status, job.error = "failed", f"its metric is {job.metric}"
    return True


@dataclass
class ConfigurationRow:
    """Jobs that differ in their seed alone."""

    choice: Choice
    jobs: list[SweepJob]

    @property
    def metrics(self) -> list[float]:
        """The metrics of the seeds that finished."""
        return [job.metric for job in self.jobs if job.status == "finished" and job.metric is not None]

    @property
    def mean(self) -> float:
        """Mean over the seeds that finished."""
        return statistics.fmean(self.metrics)

    @property
    def spread(self) -> float | None:
        """Standard deviation over two or more seeds."""
        return statistics.stdev(self.metrics) if len(self.metrics) > 1 else None


def rank_configurations(done: list[SweepJob], direction: str) -> list[ConfigurationRow]:
    """The jobs by configuration: best mean first, those without a result last."""
    rows: list[ConfigurationRow] = []
    for job in done:
        choice = {k: v for k, v in job.choice.items() if k != "seed"}
        row = next((r for r in rows if r.choice == choice), None)
        if row is None:
            rows.append(row := ConfigurationRow(choice, []))
        row.jobs.append(job)
    for row in rows:
        row.jobs.sort(key=lambda job: sort_key(job, direction))
    sign = 1 if direction == "minimize" else -1
    return sorted(rows, key=lambda r: (not r.metrics, sign * r.mean if r.metrics else 0))


def sort_key(job: SweepJob, direction: str) -> tuple[bool, float]:
    """Sorts jobs with a result first, the best at the front."""
    if job.status != "finished" or job.metric is None:
        return True, 0.0
    return False, job.metric if direction == "minimize" else -job.metric
