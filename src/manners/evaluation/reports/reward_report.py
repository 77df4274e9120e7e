"""The report on a reward model: in the terminal, as markdown, and its worst errors as records for a table."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from manners.data.types import Message, PreferencePair, ScoredReply
from manners.evaluation.metrics import reward_sanity as suite
from manners.evaluation.metrics.reward_quality import PairwiseQuality, RegressionQuality
from manners.evaluation.metrics.reward_sanity import SanityResult, shorten_reply
from manners.evaluation.reports.before_after import as_text, markdown_cell
from manners.evaluation.stats import Estimate

Records = list[dict[str, str]]

NONE = "–"
NAMES = {  # in the table's order, with what they are measured in
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "r2": "explained variance, R²",
    "pearson": "correlation, Pearson",
    "spearman": "correlation, Spearman",
    "pair_accuracy": "pairs of a prompt ordered rightly",
    "error_length": "error with length, Spearman",
}


def worst_errors(scored: Sequence[ScoredReply], predicted: Sequence[float] | np.ndarray, count: int = 5) -> Records:
    """The worst errors first: prompt, reply, true, predicted."""
    true = np.array([r.score for r in scored])
    worst = np.argsort(-np.abs(np.asarray(predicted, float) - true), kind="stable")[:count]
    return [
        {
            "prompt": last_turn(scored[i].messages),
            "reply": scored[i].reply,
            "true": f"{true[i]:.2f}",
            "predicted": f"{predicted[i]:.2f}",
        }
        for i in worst
    ]


def worst_pairs(
    pairs: Sequence[PreferencePair],
    chosen: Sequence[float] | np.ndarray,
    rejected: Sequence[float] | np.ndarray,
    count: int = 5,
) -> Records:
    """The pairs whose rejected reply scores highest over the chosen one; none that are ordered rightly."""
    over = np.asarray(rejected, float) - np.asarray(chosen, float)
    worst = [i for i in np.argsort(-over, kind="stable")[:count] if over[i] >= 0]
    return [
        {
            "prompt": last_turn(pairs[i].messages),
            "chosen": pairs[i].chosen,
            "rejected": pairs[i].rejected,
            "scores": f"{chosen[i]:.2f} < {rejected[i]:.2f}" if over[i] else f"{chosen[i]:.2f}, both",
        }
        for i in worst
    ]


def last_turn(messages: list[Message]) -> str:
    """The turn that is answered; nothing where a plain text answers nobody."""
    return messages[-1]["content"] if messages else NONE


def reward_numbers(quality: RegressionQuality | PairwiseQuality) -> list[tuple[str, str, str]]:
    """Name, baseline, model, each with its 95 % interval."""
    if isinstance(quality, PairwiseQuality):
        return [
            (NAMES["pair_accuracy"], "50.0 %", quality.accuracy.percent()),
            ("mean margin, chosen over rejected", NONE, quality.margin.plain()),
        ]
    lines = []
    for name, title in NAMES.items():
        found: Estimate | None = getattr(quality, name)
        if name == "pair_accuracy":
            if found:
                lines.append((title, "50.0 %", found.percent()))
            continue
        if name == "error_length" and not found:
            continue
        baseline = quality.baseline.get(name)
        lines.append((title, baseline.plain() if baseline else NONE, found.plain() if found else NONE))
    return lines


def reward_note(quality: RegressionQuality | PairwiseQuality) -> str:
    if isinstance(quality, PairwiseQuality):
        return f"{quality.pairs} pairs held out, to {quality.prompts} prompts. Intervals are at 95 %, over prompts."
    pairs = f" and {quality.pairs} pairs of them" if quality.pairs else ""
    return (
        f"{quality.rows} replies held out{pairs}, to {quality.prompts} prompts. Intervals are at 95 %, over prompts. "
        "The baseline gives every reply the mean score of the training rows."
    )


def reward_markdown(
    title: str, quality: RegressionQuality | PairwiseQuality, sanity: SanityResult | None, worst: Records
) -> str:
    """``worst`` are ``worst_errors`` or ``worst_pairs``; ``sanity`` is None where it was not asked for."""
    lines = [f"# {title}", "", "| measure | baseline | model |", "| --- | --- | --- |"]
    lines += [f"| {name} | {baseline} | {model} |" for name, baseline, model in reward_numbers(quality)]
    lines += ["", reward_note(quality)]
    if sanity:
        lines += ["", "## Replies spoilt on purpose", "", *suite.sanity_markdown(sanity)]
    if worst:
        header = list(worst[0])
        lines += ["", "## Worst errors", "", f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
        lines += [f"| {' | '.join(markdown_cell(shorten_reply(r[name])) for name in header)} |" for r in worst]
    return "\n".join(lines) + "\n"


def show_reward_report(
    console: Console, quality: RegressionQuality | PairwiseQuality, sanity: SanityResult | None, worst: Records
) -> None:
    if worst:
        table = Table(*worst[0], header_style="bold", show_lines=True, title="worst errors", title_justify="left")
        for record in worst:
            table.add_row(*(as_text(shorten_reply(text)) for text in record.values()))
        console.print(table)
    if sanity:
        suite.show_sanity(console, sanity)
    table = Table("", "baseline", "model", header_style="bold", box=None)
    for line in reward_numbers(quality):
        table.add_row(*map(as_text, line))
    console.print(table)
    console.print(reward_note(quality), highlight=False)
