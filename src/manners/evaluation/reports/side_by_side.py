"""Several models on the same prompts: tables in the terminal and as markdown, and the figure by turn."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

from manners.evaluation.best_of_n import BestOfN
from manners.evaluation.evaluate import Generation, is_rate
from manners.evaluation.multi_turn import TurnTrend
from manners.evaluation.reports.before_after import format_reply, intervals_line
from manners.evaluation.reports.figures import AFTER, BEFORE, save_figure
from manners.evaluation.reports.table import Table, markdown_report
from manners.evaluation.stats import Estimate, paired_change

COLORS = (BEFORE, AFTER, "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c", "#f08c00", "#364fc7", "#868e96", "#862e9c")


@dataclass
class ModelResult:
    """The replies of one model, and what was measured in them."""

    name: str
    generations: list[Generation]  # to the held-out prompts
    shown_generations: list[Generation]  # to the prompts of the table
    clusters: np.ndarray  # (N,): which held-out prompts belong together
    metrics: dict[str, Estimate] = field(default_factory=dict)  # EOS rate, style and fact accuracy, rewards, loss
    text_stats: dict[str, Estimate] = field(default_factory=dict)
    distances: dict[str, float] = field(default_factory=dict)  # from the replies in the data, 0 to 1
    turn_trends: dict[str, TurnTrend] = field(default_factory=dict)
    benchmarks: dict[str, Estimate] = field(default_factory=dict)
    benchmark_prompts: str = ""  # how they were asked: by the chat template, or by plain text
    best_of_n: list[BestOfN] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)  # of each reward, one for each generation

    def values(self) -> dict[str, float]:
        """The values for MLflow, by name."""
        return {name: e.value for name, e in (self.metrics | self.text_stats | self.benchmarks).items()}

    def to_json(self) -> dict[str, Any]:
        """All numbers, without the replies."""
        without = {"name", "generations", "shown_generations", "clusters", "scores"}
        return {name: value for name, value in asdict(self).items() if name not in without}


def comparison_table(results: list[ModelResult], reference: dict[str, Estimate]) -> Table:
    """A row for each metric: its name, the value of each model with its interval, the replies in the data."""
    rows = []
    for kind in ("metrics", "text_stats", "benchmarks"):
        for name in dict.fromkeys(name for result in results for name in getattr(result, kind)):
            estimates = [getattr(result, kind).get(name) for result in results]
            in_data = reference.get(name) if kind == "text_stats" else None
            values = [("" if e is None else e.percent() if is_rate(name) else e.plain()) for e in estimates]
            rows.append([name, *values, in_data.plain() if in_data else ""])
    if any(result.benchmark_prompts for result in results):
        rows.append(["prompts of the benchmarks", *(result.benchmark_prompts for result in results), ""])
    if changes := paired_changes(results):
        rows.append([f"style accuracy, change from {results[0].name}, paired", "", *changes, ""])
    for name in dict.fromkeys(name for result in results for name in result.distances):
        rows.append([f"distance: {name}", *(f"{result.distances[name]:.3f}" for result in results), "0"])
    return Table(["metric", *(result.name for result in results), "in the data"], rows)


def paired_changes(results: list[ModelResult]) -> list[str]:
    """The style accuracy of each model but the first minus that of the first, on the same prompts, in points."""
    fits = [np.array([g.matches_style for g in result.generations], dtype=object) for result in results]
    if len(fits) < 2 or any(value is None for column in fits for value in column):
        return []
    first, *others = (column.astype(bool) for column in fits)
    changes = [paired_change(first, other, results[0].clusters) for other in others]
    return [f"{100 * e.value:+.1f} points [{100 * e.low:+.1f}, {100 * e.high:+.1f}]" for e in changes]


def trend_tables(results: list[ModelResult]) -> list[Table]:
    """For each metric, its value by turn and its decline, a row for each model."""
    tables = []
    for metric, trends in trends_by_metric(results).items():
        turns = len(next(iter(trends.values())).by_turn)
        rows = [
            [name, *(f"{e.value:.2f}" for e in trend.by_turn), trend.decline.plain()] for name, trend in trends.items()
        ]
        header = [f"{metric}, by turn", *map(str, range(1, turns + 1)), "decline in the second half"]
        tables.append(Table(header, rows))
    return tables


def best_of_n_tables(results: list[ModelResult]) -> list[Table]:
    """For each model whose best replies were chosen, what they are like as more are sampled."""
    return [
        Table(
            [f"{result.name.partition(' (')[0]}: best of", "KL, nats", "reward", "style accuracy"],
            [
                [str(b.n), f"{b.kl:.2f}", b.reward.plain(), b.style_accuracy.percent() if b.style_accuracy else ""]
                for b in result.best_of_n
            ],
        )
        for result in results
        if result.best_of_n
    ]


def trends_by_metric(results: list[ModelResult]) -> dict[str, dict[str, TurnTrend]]:
    """For each metric, its trend by the name of the model."""
    metrics = dict.fromkeys(metric for result in results for metric in result.turn_trends)
    return {
        metric: {result.name: result.turn_trends[metric] for result in results if metric in result.turn_trends}
        for metric in metrics
    }


def replies_table(results: list[ModelResult]) -> Table:
    """The replies to the shown prompts, a column for each model."""
    replies = zip(*(result.shown_generations for result in results), strict=True)
    rows = [[row[0].prompt or "(the model speaks first)", *map(format_reply, row)] for row in replies]
    return Table(["prompt", *(result.name for result in results)], rows)


def show_comparison(console: Console, results: list[ModelResult], reference: dict[str, Estimate]) -> None:
    """Print the replies, the metrics of all models, and each metric by turn."""
    replies_table(results).show(console, ruled=True)
    table = comparison_table(results, reference)
    nonzero = [row for row in table.rows if any(value[:6] not in ("", "0.000 ") for value in row[1:])]
    replace(table, rows=nonzero).show(console)
    if len(nonzero) < len(table.rows):
        zero = ", ".join(row[0] for row in table.rows if row not in nonzero)
        console.print(f"0 in all replies, and left out here: {zero}")
    for more in (*best_of_n_tables(results), *trend_tables(results)):
        more.show(console)


def comparison_markdown(title: str, results: list[ModelResult], reference: dict[str, Estimate]) -> str:
    """The comparison as it is written to ``comparison.md``."""
    note = intervals_line(len(results[0].generations), len(set(results[0].clusters)))
    if results[0].distances:
        note += " A distance is the Kolmogorov-Smirnov statistic between the model's turns and people's own."
    more = [*best_of_n_tables(results), *trend_tables(results)]
    return markdown_report(title, [comparison_table(results, reference), note, *more])


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
