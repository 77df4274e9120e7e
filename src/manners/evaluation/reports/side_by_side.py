"""Several models on the same prompts: tables in the terminal and as markdown, and the figure by turn."""

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from manners.evaluation.evaluate import RATES, Generation
from manners.evaluation.multi_turn import TurnTrend
from manners.evaluation.reports.before_after import as_text, format_reply, markdown_cell
from manners.evaluation.reports.figures import AFTER, BEFORE, save_figure
from manners.evaluation.stats import Estimate

COLORS = (BEFORE, AFTER, "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c")


@dataclass
class ModelResult:
    """The replies of one model, and what was measured in them."""

    name: str
    generations: list[Generation]  # to the held-out prompts
    shown_generations: list[Generation]  # to the prompts of the table
    metrics: dict[str, Estimate] = field(default_factory=dict)  # EOS rate, style and fact accuracy, rewards, loss
    text_stats: dict[str, Estimate] = field(default_factory=dict)
    distances: dict[str, float] = field(default_factory=dict)  # from the replies in the data, 0 to 1
    turn_trends: dict[str, TurnTrend] = field(default_factory=dict)
    benchmarks: dict[str, Estimate] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """The values for MLflow, by name."""
        return {name: e.value for name, e in (self.metrics | self.text_stats | self.benchmarks).items()}


def comparison_rows(results: list[ModelResult], reference: dict[str, Estimate]) -> list[list[str]]:
    """A row for each metric: its name, the value of each model with its interval, the replies in the data."""
    rows = []
    for kind in ("metrics", "text_stats", "benchmarks"):
        for name in dict.fromkeys(name for result in results for name in getattr(result, kind)):
            estimates = [getattr(result, kind).get(name) for result in results]
            in_data = reference.get(name) if kind == "text_stats" else None
            values = [("" if e is None else e.percent() if name in RATES else e.plain()) for e in estimates]
            rows.append([name, *values, in_data.plain() if in_data else ""])
    for name in dict.fromkeys(name for result in results for name in result.distances):
        rows.append([f"distance: {name}", *(f"{result.distances[name]:.3f}" for result in results), "0"])
    return rows


def show_comparison(console: Console, results: list[ModelResult], reference: dict[str, Estimate]) -> None:
    """Print the metrics of all models, and each metric by turn."""
    table = Table("", *(result.name for result in results), "in the data", header_style="bold", box=None)
    rows = comparison_rows(results, reference)
    nonzero = [row for row in rows if any(value[:6] not in ("", "0.000 ") for value in row[1:])]
    for row in nonzero:
        table.add_row(*map(as_text, row))
    console.print(table)
    if len(nonzero) < len(rows):
        console.print(f"0 in all replies, and left out here: {', '.join(r[0] for r in rows if r not in nonzero)}")
    for metric, trends in trends_by_metric(results).items():
        table = Table(*trend_header(metric, trends), header_style="bold", box=None)
        for name, trend in trends.items():
            table.add_row(name, *(f"{e.value:.2f}" for e in trend.by_turn), as_text(trend.decline.plain()))
        console.print(table)


def trends_by_metric(results: list[ModelResult]) -> dict[str, dict[str, TurnTrend]]:
    """For each metric, its trend by the name of the model."""
    metrics = dict.fromkeys(metric for result in results for metric in result.turn_trends)
    return {
        metric: {result.name: result.turn_trends[metric] for result in results if metric in result.turn_trends}
        for metric in metrics
    }


def trend_header(metric: str, trends: dict[str, TurnTrend]) -> list[str]:
    turns = len(next(iter(trends.values())).by_turn)
    return [f"{metric}, by turn", *map(str, range(1, turns + 1)), "decline in the second half"]


def comparison_markdown(title: str, results: list[ModelResult], reference: dict[str, Estimate]) -> str:
    """The comparison as it is written to ``comparison.md``."""
    header = ["metric", *(result.name for result in results), "in the data"]
    lines = [f"# {title}", "", markdown_row(header), markdown_row(["---"] * len(header))]
    lines += [markdown_row(row) for row in comparison_rows(results, reference)]
    lines += ["", f"{len(results[0].generations)} held-out prompts; intervals are at 95 %."]
    if results[0].distances:
        lines += ["A distance is the Kolmogorov-Smirnov statistic between the model's turns and people's own."]
    for metric, trends in trends_by_metric(results).items():
        header = trend_header(metric, trends)
        lines += ["", markdown_row(header), markdown_row(["---"] * len(header))]
        for name, trend in trends.items():
            lines.append(markdown_row([name, *(f"{e.value:.2f}" for e in trend.by_turn), trend.decline.plain()]))
    return "\n".join(lines) + "\n"


def replies_markdown(title: str, results: list[ModelResult]) -> str:
    """The replies to the shown prompts, a column for each model."""
    header = ["prompt", *(result.name for result in results)]
    lines = [f"# {title}", "", markdown_row(header), markdown_row(["---"] * len(header))]
    for generations in zip(*(result.shown_generations for result in results), strict=True):
        prompt = generations[0].prompt or "(the model speaks first)"
        lines.append(markdown_row([prompt, *map(format_reply, generations)]))
    return "\n".join(lines) + "\n"


def markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(map(markdown_cell, cells)) + " |"


def show_replies(console: Console, results: list[ModelResult], count: int) -> None:
    """Print the replies to the first ``count`` of the shown prompts."""
    table = Table("prompt", *(result.name for result in results), header_style="bold", show_lines=True)
    for generations in list(zip(*(result.shown_generations for result in results), strict=True))[:count]:
        table.add_row(as_text(generations[0].prompt), *(as_text(format_reply(g)) for g in generations))
    console.print(table)


def turn_trend_figure(results: list[ModelResult], out: Path) -> Path:
    """Each metric by turn, a line for each model, with 95 % bands."""
    by_metric = trends_by_metric(results)
    width = 5 * len(by_metric)
    figure, panels = plt.subplots(1, len(by_metric), figsize=(width, 3.6), layout="constrained", squeeze=False)
    colors = dict(zip((result.name for result in results), COLORS, strict=False))
    for axes, (metric, trends) in zip(panels[0], by_metric.items(), strict=True):
        for name, trend in trends.items():
            values, turns = trend.by_turn, range(1, len(trend.by_turn) + 1)
            color = colors[name]
            axes.plot(turns, [e.value for e in values], "o-", color=color, label=name, markersize=4)
            axes.fill_between(turns, [e.low for e in values], [e.high for e in values], color=color, alpha=0.15)
        axes.set(xlabel="turn of the conversation", title=metric, xticks=list(turns))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False)
    return save_figure(figure, out)
