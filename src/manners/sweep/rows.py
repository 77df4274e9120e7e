"""The jobs of a sweep by configuration: a row each, its seeds together."""

import statistics
from dataclasses import dataclass

from manners.sweep.jobs import SweepJob
from manners.sweep.space import Choice


@dataclass
class ConfigurationRow:
    """A configuration: its jobs differ in their seed alone."""

    choice: Choice
    jobs: list[SweepJob]

    @property
    def metrics(self) -> list[float]:
        return [job.metric for job in self.jobs if job.status == "finished" and job.metric is not None]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.metrics)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds, of two or more."""
        return statistics.stdev(self.metrics) if len(self.metrics) > 1 else None


def rank_configurations(done: list[SweepJob], direction: str) -> list[ConfigurationRow]:
    """The jobs by configuration, the best mean first; those without a result last."""
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
    if job.status != "finished" or job.metric is None:
        return True, 0.0
    return False, job.metric if direction == "minimize" else -job.metric
