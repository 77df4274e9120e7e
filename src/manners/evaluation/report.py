"""The before/after report: in the terminal, as markdown, and as a table for the tracking store."""

import math
import re

from rich.console import Console
from rich.table import Table
from rich.text import Text

from manners.evaluation.manner import RUNS_ON
from manners.evaluation.measure import Answer, Measured
from manners.evaluation.stats import Estimate


def rows(before: Measured, after: Measured) -> list[dict[str, str]]:
    """The fixed prompts with both replies, as records."""
    return [
        {"prompt": b.prompt or "(the model speaks first)", "wants": wants(b), "before": said(b), "after": said(a)}
        for b, a in zip(before.shown, after.shown, strict=True)
    ]


def wants(a: Answer) -> str:
    return a.category.replace("_", " ")


def said(a: Answer) -> str:
    """The reply, with the judge's word for it; an ellipsis where the limit cut it off."""
    mark = {True: " ✓", False: " ✗", None: ""}[a.fits]
    return (a.reply or "(nothing)") + ("" if a.ended else " …") + (f" ({a.manner}{mark})" if a.manner else "")


def numbers(before: Measured, after: Measured) -> list[tuple[str, str, str, str]]:
    """Name, before, after, and the data's own replies where they were counted, each with its 95 % interval."""
    return [(*line, "") for line in measures(before, after)] + [
        (name, before.card[name].plain(), counted.plain(), told.plain() if (told := after.reference.get(name)) else "")
        for name, counted in after.card.items()
        if name in before.card
        and (name == RUNS_ON or any(c[name].value for c in (before.card, after.card, after.reference) if name in c))
    ]


def measures(before: Measured, after: Measured) -> list[tuple[str, str, str]]:
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


def markdown(title: str, before: Measured, after: Measured) -> str:
    lines = [f"# {title}", "", "| measure | before | after | in the data |", "| --- | --- | --- | --- |"]
    lines += [f"| {name.strip()} | {b} | {a} | {told} |" for name, b, a, told in numbers(before, after)]
    lines += ["", "Intervals are at 95 %.", "", "| prompt | before | after |", "| --- | --- | --- |"]
    lines += [f"| {cell(r['prompt'])} | {cell(r['before'])} | {cell(r['after'])} |" for r in rows(before, after)]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text.replace("|", "\\|"))


def show(console: Console, before: Measured, after: Measured) -> None:
    table = Table("prompt", "before", "after", header_style="bold", show_lines=True)
    for r in rows(before, after):
        table.add_row(*(plain(r[k]) for k in ("prompt", "before", "after")))
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
    for line in numbers(before, after):
        table.add_row(*map(plain, line))
    console.print(table)


def plain(text: str) -> Text:
    """Text as it is: of a string, rich would take brackets for markup."""
    return Text(re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", text))
