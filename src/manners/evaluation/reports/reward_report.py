"""The report on a reward model: in the terminal, as markdown, and its worst errors as records."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from manners.data.types import Message, PreferencePair, ScoredReply
from manners.evaluation.metrics.reward_quality import PairwiseQuality, RegressionQuality
from manners.evaluation.metrics.reward_sanity import SanityResult
from manners.evaluation.reports.before_after import as_text, markdown_cell
from manners.evaluation.stats import Estimate

Records = list[dict[str, str]]

NOT_DEFINED = "–"
MAX_REPLY_CHARS = 160  # of a reply in the tables
METRIC_NAMES = {  # in the order of the table
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "r2": "R²",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "pair_accuracy": "pair accuracy",
    "error_length": "Spearman correlation of error and length",
}


def worst_errors(scored: Sequence[ScoredReply], predicted: Sequence[float] | np.ndarray, count: int = 5) -> Records:
    """Return the rows with the largest errors, the largest first. ``predicted`` is (N,)."""
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
    """Return the incorrectly ordered pairs with the largest margin of the rejected over the chosen reply.

    ``chosen`` and ``rejected`` are the scores of the N pairs, each (N,).
    """
    margins = np.asarray(rejected, float) - np.asarray(chosen, float)
    worst = [i for i in np.argsort(-margins, kind="stable")[:count] if margins[i] >= 0]
    return [
        {
            "prompt": last_turn(pairs[i].messages),
            "chosen": pairs[i].chosen,
            "rejected": pairs[i].rejected,
            "scores": f"{chosen[i]:.2f} < {rejected[i]:.2f}" if margins[i] else f"{chosen[i]:.2f}, both",
        }
        for i in worst
    ]


def last_turn(messages: list[Message]) -> str:
    """Return the turn that is answered, or a dash for a text without a prompt."""
    return messages[-1]["content"] if messages else NOT_DEFINED


def reward_numbers(quality: RegressionQuality | PairwiseQuality) -> list[tuple[str, str, str]]:
    """Return name, baseline and model of each metric, with 95 % intervals."""
    if isinstance(quality, PairwiseQuality):
        return [
            (METRIC_NAMES["pair_accuracy"], "50.0 %", quality.accuracy.percent()),
            ("mean margin, chosen − rejected", NOT_DEFINED, quality.margin.plain()),
        ]
    lines = []
    for name, title in METRIC_NAMES.items():
        estimate: Estimate | None = getattr(quality, name)
        if name in ("pair_accuracy", "error_length") and not estimate:
            continue
        if name == "pair_accuracy" and estimate:
            lines.append((title, "50.0 %", estimate.percent()))
            continue
        baseline = quality.baseline.get(name)
        lines.append(
            (title, baseline.plain() if baseline else NOT_DEFINED, estimate.plain() if estimate else NOT_DEFINED)
        )
    return lines


def reward_note(quality: RegressionQuality | PairwiseQuality) -> str:
    """Return a note on sample sizes, intervals and the baseline."""
    intervals = "95 % intervals are bootstrapped over prompts."
    if isinstance(quality, PairwiseQuality):
        return f"{quality.pairs} held-out pairs for {quality.prompts} prompts. {intervals}"
    pairs = f", {quality.pairs} pairs of them," if quality.pairs else ""
    return (
        f"{quality.rows} held-out replies{pairs} for {quality.prompts} prompts. {intervals} "
        "The baseline predicts the mean score of the training rows for every reply."
    )


def reward_markdown(
    title: str, quality: RegressionQuality | PairwiseQuality, sanity: SanityResult | None, worst: Records
) -> str:
    """Return the report as it is written to ``reward_report.md``; ``worst`` are ``worst_errors`` or ``worst_pairs``."""
    lines = [f"# {title}", "", "| metric | baseline | model |", "| --- | --- | --- |"]
    lines += [f"| {name} | {baseline} | {model} |" for name, baseline, model in reward_numbers(quality)]
    lines += ["", reward_note(quality)]
    if sanity:
        lines += ["", "## Sanity check: corrupted replies", "", *sanity_markdown(sanity)]
    if worst:
        header = list(worst[0])
        lines += ["", "## Worst errors", "", f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
        lines += [f"| {' | '.join(markdown_cell(shorten_reply(r[name])) for name in header)} |" for r in worst]
    return "\n".join(lines) + "\n"


def show_reward_report(
    console: Console, quality: RegressionQuality | PairwiseQuality, sanity: SanityResult | None, worst: Records
) -> None:
    """Print the report."""
    if worst:
        table = Table(*worst[0], header_style="bold", show_lines=True, title="worst errors", title_justify="left")
        for record in worst:
            table.add_row(*(as_text(shorten_reply(text)) for text in record.values()))
        console.print(table)
    if sanity:
        show_sanity(console, sanity)
    table = Table("", "baseline", "model", header_style="bold", box=None)
    for line in reward_numbers(quality):
        table.add_row(*map(as_text, line))
    console.print(table)
    console.print(reward_note(quality), highlight=False)


SANITY_HEADER = ("corruption", "sanity accuracy", "worst corrupted reply", "original → corrupted score")


def sanity_rows(sanity: SanityResult) -> list[tuple[str, str, str, str]]:
    """Return kind, accuracy with its interval, the worst corrupted reply and both scores."""
    rows = [("all", sanity.accuracy.percent(), "", "")]
    for name, result in sanity.by_corruption.items():
        worst = result.worst
        scores = f"{worst.original_score:.2f} → {worst.corrupted_score:.2f}"
        rows.append((name, result.accuracy.percent(), shorten_reply(worst.corrupted), scores))
    return rows


def sanity_markdown(sanity: SanityResult) -> list[str]:
    """Return the lines of the sanity table."""
    table = [f"| {' | '.join(SANITY_HEADER)} |", "| --- | --- | --- | --- |"]
    table += [f"| {' | '.join(map(markdown_cell, row))} |" for row in sanity_rows(sanity)]
    return [*table, "", sanity_note(sanity)]


def sanity_note(sanity: SanityResult) -> str:
    return (
        f"Sanity accuracy: the fraction of {sanity.count} corrupted replies that score below the original. The worst "
        "reply of each kind has the largest margin over its original; a margin of 0 or more is a failure."
    )


def show_sanity(console: Console, sanity: SanityResult) -> None:
    """Print the sanity table."""
    table = Table(*SANITY_HEADER, header_style="bold")
    for row in sanity_rows(sanity):
        table.add_row(*map(as_text, row))
    console.print(table)
    console.print(sanity_note(sanity), highlight=False)


def shorten_reply(text: str) -> str:
    """Cut a reply to ``MAX_REPLY_CHARS`` characters."""
    if not text.strip():
        return "(nothing)"
    return text if len(text) <= MAX_REPLY_CHARS else text[:MAX_REPLY_CHARS].rstrip() + " …"
