"""What a sweep found: a table by configuration over its seeds, a figure, and the command that runs the best again."""

import shlex
import statistics
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from manners.config.schema import OBJECTIVE
from manners.sweep import figure
from manners.sweep.jobs import SweepJob
from manners.sweep.parent import SweepRun
from manners.sweep.rows import ConfigurationRow, rank_configurations
from manners.sweep.space import choice_overrides
from manners.tracking import registry

console = Console(soft_wrap=True, highlight=False)


def write_sweep_report(cfg: DictConfig, done: list[SweepJob], folder: Path, command: str, parent: SweepRun) -> None:
    """Table and figure to the terminal, the sweep's folder and its MLflow run."""
    key, direction = OBJECTIVE[cfg.method.name]
    rows = rank_configurations(done, direction)
    header, lines = table_cells(rows, key)
    show_table(header, lines, f"{folder.name}: best first")
    methods = {job.choice.get("method", cfg.method.name) for job in done}
    alike = len(methods) == 1 or all(OBJECTIVE[m][1] == "maximize" for m in methods)  # rewards; no two losses are alike
    best = rows[0] if rows and rows[0].metrics and alike else None
    winner = best and best.jobs[0]
    told = f"python train.py {command} {shlex.join(choice_overrides(winner.choice))}" if winner else ""
    (folder / "sweep.md").write_text(sweep_markdown(header, lines, folder.name, told, done))
    pictures = figure.draw_sweep(rows, key, direction, folder / "sweep.png")
    files = [folder / "sweep.md", *pictures]
    metrics = {f"best/{key}": best.mean, "jobs/finished": count_status(done, "finished")} if best else {}
    metrics |= {"jobs/failed": count_status(done, "failed"), "jobs/pruned": count_status(done, "pruned")}
    tags = {"manners.summary": f"{len(done)} jobs, {count_status(done, 'finished')} finished"}
    if winner and best:
        tags["manners.summary"] += f"; best {key} {best.mean:.4g}: {' '.join(choice_overrides(best.choice))}"
        tags |= {"manners.best_run": winner.run, "manners.best_run_id": winner.run_id}
    parent.tell(files, (folder / "sweep.md").read_text(), metrics, tags)
    if winner:
        console.print(f"best: {winner.run}\nrun it again: {escape(told)}")
        if cfg.register_model:
            registry.register_and_report(cfg, parent.client, winner.run_id, winner.metric)
    if not alike:
        console.print("the jobs' methods are measured by different things: none is the best")
    console.print(f"table and figure: {folder}")


def count_status(done: list[SweepJob], status: str) -> int:
    return sum(job.status == status for job in done)


def table_cells(rows: list[ConfigurationRow], key: str) -> tuple[list[str], list[list[str]]]:
    keys = list(dict.fromkeys(k for row in rows for k in row.choice))
    header = [*keys, key, "± sd", "seeds", "min", "the best of them"]
    lines = []
    for row in rows:
        spread = f"{row.spread:.3g}" if row.spread is not None else ""
        mean = f"{row.mean:.4g}" if row.metrics else ", ".join(sorted({job.status for job in row.jobs}))
        seconds = [job.seconds for job in row.jobs if job.seconds]
        minutes = f"{statistics.fmean(seconds) / 60:.1f}" if seconds else ""
        told = f"{len(row.metrics)} of {len(row.jobs)}"
        lines.append([*(row.choice.get(k, "–") for k in keys), mean, spread, told, minutes, row.jobs[0].summary])
    return header, lines


def show_table(header: list[str], lines: list[list[str]], title: str) -> None:
    table = Table(*map(escape, header), title=escape(title), box=None, header_style="bold")
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table)


def sweep_markdown(header: list[str], lines: list[list[str]], name: str, told: str, done: list[SweepJob]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    text = f"# {name}\n\n" + "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows)
    text += f"\n\nThe best again: `{told}`\n" if told else "\n\nNo job has a result.\n"
    failed = [f"- {job.name}: {job.error}" for job in done if job.status == "failed"]
    return text + ("\nFailed:\n\n" + "\n".join(failed) + "\n" if failed else "")
