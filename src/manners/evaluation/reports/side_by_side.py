"""Several models on the same prompts: their table, in the terminal and as markdown, and the figures beside it."""

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from manners.evaluation.evaluate import Generation
from manners.evaluation.multi_turn import TurnTrend
from manners.evaluation.reports.before_after import as_text, format_reply, markdown_cell
from manners.evaluation.reports.figures import AFTER, BEFORE, save_figure
from manners.evaluation.stats import Estimate

COLORS = (BEFORE, AFTER, "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c")


@dataclass
class ModelResult:
    """What one model said, and what was found in it."""

    name: str
    answers: list[Generation]  # to the held-out prompts
    shown: list[Generation]  # to the prompts of the table
    numbers: dict[str, Estimate] = field(default_factory=dict)  # ended, fits, right, scores
    card: dict[str, Estimate] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)  # from the data's own, 0 to 1
    fading: dict[str, TurnTrend] = field(default_factory=dict)
    benchmarks: dict[str, Estimate] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        return {name: e.value for name, e in (self.numbers | self.card | self.benchmarks).items()}


def comparison_rows(heard: list[ModelResult], reference: dict[str, Estimate]) -> list[list[str]]:
    """A line for each measure: its name, each model's value with its interval, the data's own."""
    found = []
    for kind in ("numbers", "card", "benchmarks"):
        names = list(dict.fromkeys(name for h in heard for name in getattr(h, kind)))
        for name in names:
            values = [getattr(h, kind).get(name) for h in heard]
            known = reference.get(name) if kind == "card" else None
            found.append([name, *(e.plain() if e else "" for e in values), known.plain() if known else ""])
    for name in dict.fromkeys(name for h in heard for name in h.apart):
        found.append([f"distance: {name}", *(f"{h.apart[name]:.3f}" for h in heard), "0"])
    return found


def show_comparison(console: Console, heard: list[ModelResult], reference: dict[str, Estimate]) -> None:
    table = Table("", *(h.name for h in heard), "in the data", header_style="bold", box=None)
    told = comparison_rows(heard, reference)
    met = [line for line in told if any(value[:6] not in ("", "0.000 ") for value in line[1:])]
    for line in met:
        table.add_row(*map(as_text, line))
    console.print(table)
    if len(met) < len(told):
        console.print(f"never met in any reply, and left out here: {', '.join(t[0] for t in told if t not in met)}")
    for measure in dict.fromkeys(m for h in heard for m in h.fading):
        turns = range(1, len(next(h.fading[measure].by_turn for h in heard if measure in h.fading)) + 1)
        table = Table(f"{measure}, by turn", *map(str, turns), "lost in the second half", header_style="bold", box=None)
        for h in heard:
            if measure in h.fading:
                found = h.fading[measure]
                table.add_row(h.name, *(f"{e.value:.2f}" for e in found.by_turn), as_text(found.loss.plain()))
        console.print(table)


def card_markdown(title: str, heard: list[ModelResult], reference: dict[str, Estimate]) -> str:
    head = ["measure", *(h.name for h in heard), "in the data"]
    text = [f"# {title}", "", markdown_row(head), markdown_row(["---"] * len(head))]
    text += [markdown_row(line) for line in comparison_rows(heard, reference)]
    text += ["", f"{len(heard[0].answers)} held-out prompts; intervals are at 95 %."]
    if heard[0].apart:
        text += ["A distance is the Kolmogorov-Smirnov statistic between the model's turns and the people's own."]
    for measure in dict.fromkeys(m for h in heard for m in h.fading):
        found = {h.name: h.fading[measure] for h in heard if measure in h.fading}
        turns = len(next(iter(found.values())).by_turn)
        head = [f"{measure}, by turn", *map(str, range(1, turns + 1)), "lost in the second half"]
        text += ["", markdown_row(head), markdown_row(["---"] * len(head))]
        text += [markdown_row([n, *(f"{e.value:.2f}" for e in f.by_turn), f.loss.plain()]) for n, f in found.items()]
    return "\n".join(text) + "\n"


def replies_markdown(title: str, heard: list[ModelResult]) -> str:
    text = [
        f"# {title}",
        "",
        markdown_row(["prompt", *(h.name for h in heard)]),
        markdown_row(["---"] * (len(heard) + 1)),
    ]
    for answers in zip(*(h.shown for h in heard), strict=True):
        text.append(markdown_row([answers[0].prompt or "(the model speaks first)", *map(format_reply, answers)]))
    return "\n".join(text) + "\n"


def markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(map(markdown_cell, cells)) + " |"


def show_replies(console: Console, heard: list[ModelResult], count: int) -> None:
    table = Table("prompt", *(h.name for h in heard), header_style="bold", show_lines=True)
    for answers in list(zip(*(h.shown for h in heard), strict=True))[:count]:
        table.add_row(as_text(answers[0].prompt), *(as_text(format_reply(a)) for a in answers))
    console.print(table)


def turn_trend_figure(heard: list[ModelResult], out: Path) -> Path:
    """Each measure by turn, a line for each model, with 95 % bands."""
    measures = list(dict.fromkeys(m for h in heard for m in h.fading))
    figure, panels = plt.subplots(
        1, len(measures), figsize=(5 * len(measures), 3.6), layout="constrained", squeeze=False
    )
    for axes, measure in zip(panels[0], measures, strict=True):
        for h, color in zip(heard, COLORS, strict=False):
            if measure not in h.fading:
                continue
            values = h.fading[measure].by_turn
            turns = range(1, len(values) + 1)
            axes.plot(turns, [e.value for e in values], "o-", color=color, label=h.name, markersize=4)
            axes.fill_between(turns, [e.low for e in values], [e.high for e in values], color=color, alpha=0.15)
        axes.set(xlabel="turn of the chat", title=measure, xticks=list(turns))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False)
    return save_figure(figure, out)
