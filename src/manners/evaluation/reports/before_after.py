"""The before/after report: in the terminal, as markdown, and as a table for the tracking store."""

import math
import re

from rich.console import Console
from rich.table import Table
from rich.text import Text

from manners.evaluation.evaluate import EvalResult, Generation
from manners.evaluation.metrics.assistant_style import RUNS_ON
from manners.evaluation.stats import Estimate


def before_after_rows(before: EvalResult, after: EvalResult) -> list[dict[str, str]]:
    """The fixed prompts with both replies, as records."""
    return [
        {
            "prompt": b.prompt or "(the model speaks first)",
            "wants": expected_manner(b),
            "before": format_reply(b),
            "after": format_reply(a),
        }
        for b, a in zip(before.shown, after.shown, strict=True)
    ]


def expected_manner(a: Generation) -> str:
    return a.category.replace("_", " ")


def format_reply(a: Generation) -> str:
    """The reply, with the judge's word for it; an ellipsis where the limit cut it off."""
    mark = {True: " ✓", False: " ✗", None: ""}[a.fits]
    return (a.reply or "(nothing)") + ("" if a.ended else " …") + (f" ({a.manner}{mark})" if a.manner else "")


def before_after_numbers(before: EvalResult, after: EvalResult) -> list[tuple[str, str, str, str]]:
    """Name, before, after, and the data's own replies where they were counted, each with its 95 % interval."""
    return [(*line, "") for line in before_after_measures(before, after)] + [
        (name, before.card[name].plain(), counted.plain(), told.plain() if (told := after.reference.get(name)) else "")
        for name, counted in after.card.items()
        if name in before.card
        and (name == RUNS_ON or any(c[name].value for c in (before.card, after.card, after.reference) if name in c))
    ]


def before_after_measures(before: EvalResult, after: EvalResult) -> list[tuple[str, str, str]]:
    lines = []
    if before.fit and after.fit:
        lines.append(("manner fits", before.fit.percent(), after.fit.percent()))
        for name in before.fit_by:
            line = (f"  {name}", before.fit_by[name].percent(), after.fit_by[name].percent())
            lines.append(line)
    if before.right and after.right:
        lines.append(("names the right fact", before.right.percent(), after.right.percent()))
    lines.append(("held-out loss, nats/token", before.loss.plain(), after.loss.plain()))
    lines.append(("held-out perplexity, a token", perplexity(before.loss), perplexity(after.loss)))
    if before.ended and after.ended:
        lines.append(("replies that end by themselves", before.ended.percent(), after.ended.percent()))
    lines += [(name, before.more[name].plain(), after.more[name].plain()) for name in before.more if name in after.more]
    return lines


def perplexity(loss: Estimate) -> str:
    value, low, high = (math.exp(min(x, 50.0)) for x in (loss.value, loss.low, loss.high))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def before_after_markdown(title: str, before: EvalResult, after: EvalResult) -> str:
    lines = [f"# {title}", "", "| measure | before | after | in the data |", "| --- | --- | --- | --- |"]
    lines += [f"| {name.strip()} | {b} | {a} | {told} |" for name, b, a, told in before_after_numbers(before, after)]
    lines += ["", "Intervals are at 95 %.", "", "| prompt | before | after |", "| --- | --- | --- |"]
    lines += [
        f"| {markdown_cell(r['prompt'])} | {markdown_cell(r['before'])} | {markdown_cell(r['after'])} |"
        for r in before_after_rows(before, after)
    ]
    return "\n".join(lines) + "\n"


def markdown_cell(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text.replace("|", "\\|"))


def show_before_after(console: Console, before: EvalResult, after: EvalResult) -> None:
    table = Table("prompt", "before", "after", header_style="bold", show_lines=True)
    for r in before_after_rows(before, after):
        table.add_row(*(as_text(r[k]) for k in ("prompt", "before", "after")))
    console.print(table)
    table = Table(
        "",
        "before",
        "after",
        "in the data",
        header_style="bold",
        box=None,
        title="95 % intervals",
        title_justify="left",
    )
    for line in before_after_numbers(before, after):
        table.add_row(*map(as_text, line))
    console.print(table)


def as_text(text: str) -> Text:
    """Text as it is: of a string, rich would take brackets for markup."""
    return Text(re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", text))
