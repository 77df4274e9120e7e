"""The report's contents: studies, with their sweeps, methods, configurations and unfinished runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markdown_it import MarkdownIt

from manners.evaluation.reports.table import Table
from manners.report import curves, query, tables
from manners.report.configurations import Configuration, group_by_configuration
from manners.report.curves import Chart, Points
from manners.report.query import EVAL_METRICS, Run

SWEEP_TAG = "manners.sweep"
REPORTS = ("comparison.md", "before_after.md", "reward_report.md")
LINEAGE = "lineage.md"

# Reports contain replies, so that only tables and headings are rendered. Neither renderer accepts raw HTML.
REPORT_RENDERER = MarkdownIt("zero").enable(["heading", "table"])
SWEEP_RENDERER = MarkdownIt("zero").enable(["heading", "table", "list", "fence", "backticks", "emphasis"])


@dataclass(frozen=True)
class Detail:
    """What the page shows of one configuration when it is expanded."""

    label: str
    names: list[str]  # of its runs
    by_seed: Table
    reports: dict[str, str]  # HTML by file name, of the first run
    lineages: list[str]


@dataclass(frozen=True)
class Group:
    """The runs of one method in a study or a sweep."""

    method: str
    table: Table
    chart: Chart | None
    details: list[Detail]
    repeats: list[str]


@dataclass(frozen=True)
class Section:
    """A sweep of a study, or all runs of the study that belong to no sweep."""

    sweep: str  # "" for the runs that belong to no sweep
    report: str  # HTML
    figure: bytes  # PNG
    groups: list[Group]


@dataclass(frozen=True)
class Study:
    """An MLflow experiment."""

    name: str
    runs: int
    cost: list[str]  # total time and tokens
    sections: list[Section]
    unfinished: Table


def build_studies(client: Any, runs: Sequence[Run]) -> list[Study]:
    """The studies by name; a sweep is listed in the study of its parent run, with its child runs."""
    sweeps = {run.id: run for run in runs if SWEEP_TAG in run.tags}
    children: dict[str, list[Run]] = {parent: [] for parent in sweeps}
    single: dict[str, list[Run]] = {name: [] for name in sorted({run.study for run in runs})}
    for run in runs:
        if run.id not in sweeps:
            children.get(run.tags.get("mlflow.parentRunId", ""), single[run.study]).append(run)
    studies = []
    for name in single:
        own = [run for run in runs if run.study == name]
        sections = [sweep_section(client, run, children[run.id]) for run in own if run.id in sweeps]
        if single[name]:
            sections.append(Section("", "", b"", method_groups(client, single[name])))
        count = sum(run.id not in sweeps for run in own)
        studies.append(Study(name, count, total_cost(own), sections, unfinished_table(own)))
    return studies


def sweep_section(client: Any, parent: Run, children: Sequence[Run]) -> Section:
    """The section of a sweep, with the report and the figure of its parent run."""
    files = query.read_artifacts(client, parent, ("sweep.md", "sweep.png"))
    report = SWEEP_RENDERER.render(files.get("sweep.md", b"").decode(errors="replace"))
    name = parent.tags[SWEEP_TAG] or parent.name
    return Section(name, report, files.get("sweep.png", b""), method_groups(client, children))


def method_groups(client: Any, runs: Sequence[Run]) -> list[Group]:
    """The finished runs grouped by method, in the order in which the methods were first used."""
    finished = [run for run in runs if run.status == "FINISHED"]
    groups = []
    for method in dict.fromkeys(run.method for run in finished):
        configurations = group_by_configuration([run for run in finished if run.method == method])
        groups.append(
            Group(
                method,
                tables.configuration_table(configurations),
                eval_chart(client, configurations),
                [configuration_detail(client, c) for c in configurations],
                [run.name for c in configurations for run in c.repeats],
            )
        )
    return groups


def eval_chart(client: Any, configurations: Sequence[Configuration]) -> Chart | None:
    """The eval metric by step, of all seeds of each configuration."""
    series: dict[str, list[Points]] = {}
    title = ""
    for configuration in configurations:
        for run in configuration.runs:
            name, points = query.eval_history(client, run)
            title = title or EVAL_METRICS.get(name, "")
            if points:
                series.setdefault(configuration.label, []).append(points)
    return curves.learning_chart(title, series)


def configuration_detail(client: Any, configuration: Configuration) -> Detail:
    """The table by seed, the reports of the first seed, and the lineage of each run that started from another."""
    files = [
        query.read_artifacts(client, run, (*(REPORTS if i == 0 else ()), LINEAGE))
        for i, run in enumerate(configuration.runs)
    ]
    reports = {name: data.decode(errors="replace") for name, data in files[0].items() if name in REPORTS}
    lineages = [run_files[LINEAGE].decode(errors="replace") for run_files in files if LINEAGE in run_files]
    return Detail(
        configuration.label,
        [run.name for run in configuration.runs],
        tables.seed_table(configuration),
        {name: REPORT_RENDERER.render(text) for name, text in reports.items()},
        [lineage for lineage in lineages if "→ " in lineage and "\n" in lineage.strip()],
    )


def unfinished_table(runs: Sequence[Run]) -> Table:
    """Runs that failed, were stopped or are still running, with their error; no other table has them."""
    states = {"FAILED": "failed", "KILLED": "stopped", "RUNNING": "running, or killed"}
    rows = [
        [run.name, states.get(run.status, run.status.lower()), run.tags.get("manners.error", "–")]
        for run in runs
        if run.status != "FINISHED"
    ]
    return Table(["run", "state", "error"], rows)


def total_cost(runs: Sequence[Run]) -> list[str]:
    """Total time and tokens of the runs that logged them."""
    formats: dict[str, Callable[[float], str]] = {
        "cost/seconds": tables.format_duration,
        "cost/tokens": lambda tokens: f"{tables.format_count(tokens)} tokens",
    }
    values = {key: [run.metrics[key] for run in runs if key in run.metrics] for key in formats}
    return [fmt(sum(values[key])) for key, fmt in formats.items() if values[key]]
