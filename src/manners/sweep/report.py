"""The result of a sweep: a table by configuration, a figure, and the command that runs the best job again."""

import shlex
import statistics
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from manners.config.schema import OBJECTIVE
from manners.evaluation.reports.table import Table, markdown_report
from manners.redact import redact_secrets
from manners.sweep import figure
from manners.sweep.jobs import ConfigurationRow, SweepJob, rank_configurations
from manners.sweep.parent import SweepRun
from manners.sweep.space import choice_overrides
from manners.tracking import registry

RESCALING = (  # options that change what the metric itself is, or the rows that it is of
    *("dataset", "method.beta", "method.loss", "method.rewards", "method.reward_clip", "method.missing_eos_penalty"),
    *("method.desirable_weight", "method.undesirable_weight", "method.corruption_ratio", "method.ranking_coef"),
)
console = Console(soft_wrap=True, highlight=False)


def write_sweep_report(cfg: DictConfig, jobs: list[SweepJob], folder: Path, command: str, parent: SweepRun) -> None:
    """Write table and figure to the terminal, the sweep's directory and its MLflow run."""
    metric, direction = OBJECTIVE[cfg.method.name]
    rows = rank_configurations(jobs, direction)
    table = configurations_table(rows, metric)
    table.show(console, f"{folder.name}: best first")
    methods = {job.choice.get("method", cfg.method.name) for job in jobs}
    # PPO and RLOO are both measured by the reward; the losses of two methods do not compare.
    comparable = len(methods) == 1 or all(OBJECTIVE[m][1] == "maximize" for m in methods)
    best_row = rows[0] if rows and rows[0].metrics and comparable else None
    best_job = best_row and best_row.jobs[0]
    rerun = f"python train.py {command} {shlex.join(choice_overrides(best_job.choice))}" if best_job else ""
    rerun = redact_secrets(rerun)
    markdown = sweep_markdown(table, folder.name, rerun, jobs)
    (folder / "sweep.md").write_text(markdown)
    figures = figure.plot_sweep(jobs, metric, direction, folder / "sweep.png")
    count = {status: sum(job.status == status for job in jobs) for status in ("finished", "failed", "pruned")}
    metrics = {f"jobs/{status}": float(number) for status, number in count.items()}
    tags = {"manners.summary": f"{len(jobs)} jobs, {count['finished']} finished"}
    if best_row and best_job:
        metrics[f"best/{metric}"] = best_row.mean
        choice = " ".join(choice_overrides(best_row.choice))
        tags["manners.summary"] += f"; best {metric} {best_row.mean:.4g}: {choice}"
        tags |= {"manners.best_run": best_job.run, "manners.best_run_id": best_job.run_id}
    parent.log_report([folder / "sweep.md", *figures], markdown, metrics, tags)
    if best_job:
        console.print(f"best: {best_job.run}\nrun it again: {escape(rerun)}")
        if cfg.register_model:
            registry.register_and_report(cfg, parent.client, best_job.run_id, best_job.metric)
    varied = {key for job in jobs for key in job.choice}
    if best_job and (rescaling := sorted(key for key in varied if key.startswith(RESCALING))):
        console.print(
            f"{', '.join(rescaling)}: {metric} is not on one scale over these, and the best job may be so for that "
            "alone. Compare them by evaluate.py",
            style="yellow",
        )
    if not comparable:
        console.print("no job is the best: their methods have different metrics, which do not compare")
    console.print(f"table and figure: {folder}")


def configurations_table(rows: list[ConfigurationRow], metric: str) -> Table:
    """A line for each configuration, with mean and deviation over its seeds."""
    keys = list(dict.fromkeys(k for row in rows for k in row.choice))
    cells = []
    for row in rows:
        deviation = f"{row.spread:.3g}" if row.spread is not None else ""
        mean = f"{row.mean:.4g}" if row.metrics else ", ".join(sorted({job.status for job in row.jobs}))
        seconds = [job.seconds for job in row.jobs if job.seconds]
        minutes = f"{statistics.fmean(seconds) / 60:.1f}" if seconds else ""
        seeds = f"{len(row.metrics)} of {len(row.jobs)}"
        cells.append([*(row.choice.get(k, "–") for k in keys), mean, deviation, seeds, minutes, row.jobs[0].summary])
    return Table([*keys, metric, "± sd", "seeds", "min", "summary of the best seed"], cells)


def sweep_markdown(table: Table, name: str, rerun: str, jobs: list[SweepJob]) -> str:
    """The report as it is written to ``sweep.md``: the table, the command of the best job, and why jobs failed."""
    parts: list[str | Table] = [table, f"The best job again: `{rerun}`" if rerun else "No job has a result."]
    if failed := [f"- {job.name}: {job.error}" for job in jobs if job.status == "failed"]:
        parts += ["Failed:", "\n".join(failed)]
    return markdown_report(name, parts)
