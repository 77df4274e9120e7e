"""The page's outline: studies, their sweeps and methods, configurations, and what did not finish."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markdown_it import MarkdownIt

from manners.report import curves, query, tables
from manners.report.configurations import Configuration, configurations
from manners.report.curves import Chart, Points
from manners.report.query import VALIDATION, Run
from manners.report.tables import Table

SWEEP = "manners.sweep"
DOCUMENTS = ("report_card.md", "before_after.md", "reward_report.md")
LINEAGE = "lineage.md"

# Replies are in these tables: nothing of theirs is read as markup, and HTML stays text.
TABLES = MarkdownIt("zero").enable(["heading", "table"])
PROSE = MarkdownIt("zero").enable(["heading", "table", "list", "fence", "backticks", "emphasis"])


@dataclass(frozen=True)
class Detail:
    """One configuration, opened."""

    label: str
    names: list[str]  # of its runs
    by_seed: Table
    documents: dict[str, str]  # HTML, by the run that they are of
    lineage: list[str]


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
    """A sweep of a study, or its other runs."""

    sweep: str  # "" for the other runs
    document: str  # HTML
    picture: bytes  # PNG
    groups: list[Group]


@dataclass(frozen=True)
class Study:
    name: str
    runs: int
    cost: list[str]  # time, tokens of all its runs
    parts: list[Section]
    unfinished: Table


def build_studies(client: Any, runs: Sequence[Run]) -> list[Study]:
    """By name. A sweep stands where its parent run does, above what its children were."""
    names = sorted({run.study for run in runs})
    sweeps = {run.id: run for run in runs if SWEEP in run.tags}
    children: dict[str, list[Run]] = {parent: [] for parent in sweeps}
    alone: dict[str, list[Run]] = {name: [] for name in names}
    for run in runs:
        if run.id not in sweeps:
            children.get(run.tags.get("mlflow.parentRunId", ""), alone[run.study]).append(run)
    found = []
    for name in names:
        own = [run for run in runs if run.study == name]
        parts = [sweep_section(client, run, children[run.id]) for run in own if run.id in sweeps]
        if alone[name]:
            parts.append(Section("", "", b"", method_groups(client, alone[name])))
        found.append(Study(name, sum(r.id not in sweeps for r in own), total_cost(own), parts, unfinished(own)))
    return found


def sweep_section(client: Any, parent: Run, children: Sequence[Run]) -> Section:
    found = query.read_artifacts(client, parent, ("sweep.md", "sweep.png"))
    document = PROSE.render(found.get("sweep.md", b"").decode(errors="replace"))
    return Section(
        parent.tags[SWEEP] or parent.name, document, found.get("sweep.png", b""), method_groups(client, children)
    )


def method_groups(client: Any, runs: Sequence[Run]) -> list[Group]:
    """The finished of the ``runs``, by method, in the order in which the methods were first used."""
    finished = [run for run in runs if run.status == "FINISHED"]
    return [
        method_group(client, m, [r for r in finished if r.method == m])
        for m in dict.fromkeys(r.method for r in finished)
    ]


def method_group(client: Any, method: str, runs: Sequence[Run]) -> Group:
    found = configurations(runs)
    return Group(
        method,
        tables.by_configuration(found),
        learning(client, found),
        [detail(client, one) for one in found],
        [run.name for one in found for run in one.repeats],
    )


def learning(client: Any, found: Sequence[Configuration]) -> Chart | None:
    series: dict[str, list[Points]] = {}
    title = ""
    for one in found:
        for run in one.runs:
            name, points = query.validation_curve(client, run)
            title = title or VALIDATION.get(name, "")
            if points:
                series.setdefault(one.label, []).append(points)
    return curves.learning_chart(title, series)


def detail(client: Any, one: Configuration) -> Detail:
    """The documents are the first seed's; the lineage is each run's, where it came from another."""
    read = [
        query.read_artifacts(client, run, (*(DOCUMENTS if i == 0 else ()), LINEAGE)) for i, run in enumerate(one.runs)
    ]
    text = {name: data.decode(errors="replace") for name, data in read[0].items() if name in DOCUMENTS}
    drawn = [files[LINEAGE].decode(errors="replace") for files in read if LINEAGE in files]
    return Detail(
        one.label,
        [run.name for run in one.runs],
        tables.seed_table(one),
        {name: TABLES.render(told) for name, told in text.items()},
        [drawing for drawing in drawn if "→ " in drawing and "\n" in drawing.strip()],
    )


def unfinished(runs: Sequence[Run]) -> Table:
    """What failed, was stopped, or is still at work, with its error: none of these is in the tables of results."""
    words = {"FAILED": "failed", "KILLED": "stopped", "RUNNING": "running, or killed"}
    rows = [
        [run.name, words.get(run.status, run.status.lower()), run.tags.get("manners.error", "–")]
        for run in runs
        if run.status != "FINISHED"
    ]
    return Table(["run", "state", "error"], rows)


def total_cost(runs: Sequence[Run]) -> list[str]:
    """Time and tokens of all finished runs together, of those that logged them."""
    forms: dict[str, Callable[[float], str]] = {
        "cost/seconds": tables.format_duration,
        "cost/tokens": lambda tokens: f"{tables.format_count(tokens)} tokens",
    }
    found = {key: [run.metrics[key] for run in runs if key in run.metrics] for key in forms}
    return [form(sum(found[key])) for key, form in forms.items() if found[key]]
