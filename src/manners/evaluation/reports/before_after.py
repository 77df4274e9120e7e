"""The before/after report: in the terminal, as markdown, and as a table for the tracking store."""

import math

from rich.console import Console
from rich.text import Text

from manners.evaluation.evaluate import EOS_NAME, LOSS_NAME, EvalResult, Generation, is_rate
from manners.evaluation.metrics.assistant_style import RUNS_ON
from manners.evaluation.reports.table import Table, markdown_report
from manners.evaluation.stats import Estimate


def intervals_line(num_prompts: int, num_clusters: int) -> str:
    """How many prompts were counted, and what the intervals are over."""
    prompts = f"{num_prompts} held-out prompts. " if num_prompts else ""
    if num_clusters == num_prompts:
        return f"{prompts}Intervals are at 95 %."
    return f"{prompts}Intervals are at 95 %, over {num_clusters} clusters of prompts: of one tree, template or opening."


def before_after_rows(before: EvalResult, after: EvalResult) -> list[dict[str, str]]:
    """The shown prompts with both replies, as records."""
    return [
        {
            "prompt": b.prompt or "(the model speaks first)",
            "category": b.category.replace("_", " "),
            "before": format_reply(b),
            "after": format_reply(a),
        }
        for b, a in zip(before.shown_generations, after.shown_generations, strict=True)
    ]


def format_reply(generation: Generation) -> str:
    """The reply, an ellipsis where it has no EOS, and the verdict of the style judge."""
    mark = {True: " ✓", False: " ✗", None: ""}[generation.matches_style]
    verdict = f" ({generation.style}{mark})" if generation.style else ""
    return (generation.reply or "(nothing)") + ("" if generation.has_eos else " …") + verdict


def before_after_numbers(before: EvalResult, after: EvalResult) -> list[tuple[str, str, str, str]]:
    """Name, before, after, and the replies in the data where they were counted, each with its 95 % interval."""
    lines = [(*line, "") for line in before_after_measures(before, after)]
    for name, counted in after.text_stats.items():
        reference = after.reference_text_stats.get(name)
        values = [e for e in (before.text_stats.get(name), counted, reference) if e]
        if name in before.text_stats and (name == RUNS_ON or any(e.value for e in values)):
            in_data = reference.plain() if reference else ""
            lines.append((name, before.text_stats[name].plain(), counted.plain(), in_data))
    return lines


def before_after_measures(before: EvalResult, after: EvalResult) -> list[tuple[str, str, str]]:
    """Name, before and after of the metrics of the method."""
    lines = []
    if before.style_accuracy and after.style_accuracy:
        lines.append(("style accuracy", before.style_accuracy.percent(), after.style_accuracy.percent()))
        for name, estimate in before.style_accuracy_by_group.items():
            lines.append((f"  {name}", estimate.percent(), after.style_accuracy_by_group[name].percent()))
    if before.fact_accuracy and after.fact_accuracy:
        lines.append(("fact accuracy", before.fact_accuracy.percent(), after.fact_accuracy.percent()))
    lines.append((LOSS_NAME, before.loss.plain(), after.loss.plain()))
    lines.append(("held-out perplexity, per token", perplexity(before.loss), perplexity(after.loss)))
    if before.eos_rate and after.eos_rate:
        lines.append((EOS_NAME, before.eos_rate.percent(), after.eos_rate.percent()))
    for name, estimate in before.extra_metrics.items():
        if name in after.extra_metrics:
            old, new = (e.percent() if is_rate(name) else e.plain() for e in (estimate, after.extra_metrics[name]))
            lines.append((name, old, new))
    return lines


def perplexity(loss: Estimate) -> str:
    value, low, high = (math.exp(min(x, 50.0)) for x in (loss.value, loss.low, loss.high))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def before_after_markdown(title: str, before: EvalResult, after: EvalResult, summary: str) -> str:
    """The report as it is written to ``before_after.md``."""
    numbers, replies = before_after_tables(before, after)
    return markdown_report(
        title, [f"{summary}.", numbers, intervals_line(after.num_prompts, after.num_clusters), replies]
    )


def show_before_after(console: Console, before: EvalResult, after: EvalResult, summary: str) -> None:
    """Print the report."""
    console.print(Text(summary, style="bold"))
    numbers, replies = before_after_tables(before, after)
    replies.show(console, ruled=True)
    numbers.show(console, intervals_line(after.num_prompts, after.num_clusters))


def before_after_tables(before: EvalResult, after: EvalResult) -> tuple[Table, Table]:
    """The metrics, and the replies to the shown prompts."""
    numbers = Table(["metric", "before", "after", "in the data"], before_after_numbers(before, after))
    columns = ["prompt", "before", "after"]
    return numbers, Table(columns, [[row[key] for key in columns] for row in before_after_rows(before, after)])
