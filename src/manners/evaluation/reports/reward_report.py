"""The report on a reward model: in the terminal, as markdown, and its worst errors as records."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console

from manners.data.types import Message, PreferencePair, ScoredReply
from manners.evaluation.metrics.reward_quality import PairwiseQuality, RegressionQuality
from manners.evaluation.metrics.reward_sanity import SanityResult
from manners.evaluation.metrics.word_credit import Score, strongest_words, word_credits
from manners.evaluation.reports.table import Table, markdown_report
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
    "policy_spearman": "Spearman correlation, replies of a policy",
    "pair_accuracy": "pair accuracy",
    "error_length": "Spearman correlation of error and length",
}


def worst_errors(
    scored: Sequence[ScoredReply],
    predicted: Sequence[float] | np.ndarray,
    score: Score | None = None,
    count: int = 5,
) -> Records:
    """Return the rows with the largest errors, the largest first. ``predicted`` is (N,).

    With ``score``, which gave them, also the words that earned and lost the most.
    """
    true = np.array([r.score for r in scored])
    worst = np.argsort(-np.abs(np.asarray(predicted, float) - true), kind="stable")[:count]
    return [
        {
            "prompt": last_turn(scored[i].messages),
            "reply": scored[i].reply,
            "true": f"{true[i]:.2f}",
            "predicted": f"{predicted[i]:.2f}",
            **words_of(score, scored[i].messages, scored[i].reply),
        }
        for i in worst
    ]


def worst_pairs(
    pairs: Sequence[PreferencePair],
    chosen: Sequence[float] | np.ndarray,
    rejected: Sequence[float] | np.ndarray,
    score: Score | None = None,
    count: int = 5,
) -> Records:
    """Return the incorrectly ordered pairs with the largest margin of the rejected over the chosen reply.

    ``chosen`` and ``rejected`` are the scores of the N pairs, each (N,). With ``score``, which gave them, also the
    words of the rejected reply that earned and lost the most.
    """
    margins = np.asarray(rejected, float) - np.asarray(chosen, float)
    worst = [i for i in np.argsort(-margins, kind="stable")[:count] if margins[i] >= 0]
    return [
        {
            "prompt": last_turn(pairs[i].messages),
            "chosen": pairs[i].chosen,
            "rejected": pairs[i].rejected,
            "scores": f"{chosen[i]:.2f} < {rejected[i]:.2f}" if margins[i] else f"{chosen[i]:.2f}, both",
            **words_of(score, pairs[i].messages, pairs[i].rejected),
        }
        for i in worst
    ]


def words_of(score: Score | None, messages: list[Message], reply: str) -> dict[str, str]:
    """Return what a reward model pays for in a reply, as a field of its record; none without ``score``."""
    if score is None or not reply.strip():
        return {}
    return {"words that earned or lost it": strongest_words(word_credits(score, messages, reply))}


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
        if name in ("policy_spearman", "pair_accuracy", "error_length") and not estimate:
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
    own = f" {quality.policy_replies} replies of a policy count for their own correlation alone."
    return (
        f"{quality.rows} held-out replies{pairs} for {quality.prompts} prompts.{own * bool(quality.policy_replies)} "
        f"{intervals} The baseline predicts the mean score of the training rows for every reply."
    )


def reward_markdown(
    title: str, quality: RegressionQuality | PairwiseQuality, sanity: SanityResult | None, worst: Records
) -> str:
    """The report as it is written to ``reward_report.md``; ``worst`` are ``worst_errors`` or ``worst_pairs``."""
    parts: list[str | Table] = [Table(["metric", "baseline", "model"], reward_numbers(quality)), reward_note(quality)]
    if sanity:
        parts += ["## Sanity check: corrupted replies", sanity_table(sanity), sanity_note(sanity)]
    if worst:
        parts += ["## Worst errors", worst_table(worst)]
    return markdown_report(title, parts)


def show_reward_report(
    console: Console, quality: RegressionQuality | PairwiseQuality, sanity: SanityResult | None, worst: Records
) -> None:
    """Print the report."""
    if worst:
        worst_table(worst).show(console, "worst errors", ruled=True)
    if sanity:
        sanity_table(sanity).show(console)
        console.print(sanity_note(sanity), highlight=False)
    Table(["", "baseline", "model"], reward_numbers(quality)).show(console)
    console.print(reward_note(quality), highlight=False)


def worst_table(worst: Records) -> Table:
    """The worst errors, with long replies cut."""
    return Table(list(worst[0]), [[shorten_reply(text) for text in record.values()] for record in worst])


def sanity_table(sanity: SanityResult) -> Table:
    """Kind of corruption, accuracy with its interval, the worst corrupted reply and both scores."""
    rows = [("all", sanity.accuracy.percent(), "", "")]
    for name, result in sanity.by_corruption.items():
        worst = result.worst
        scores = f"{worst.original_score:.2f} → {worst.corrupted_score:.2f}"
        rows.append((name, result.accuracy.percent(), shorten_reply(worst.corrupted), scores))
    return Table(["corruption", "sanity accuracy", "worst corrupted reply", "original → corrupted score"], rows)


def sanity_note(sanity: SanityResult) -> str:
    return (
        f"Sanity accuracy: the fraction of {sanity.count} corrupted replies that score below the original. The worst "
        "reply of each kind has the largest margin over its original; a margin of 0 or more is a failure."
    )


def shorten_reply(text: str) -> str:
    """Cut a reply to ``MAX_REPLY_CHARS`` characters."""
    if not text.strip():
        return "(nothing)"
    return text if len(text) <= MAX_REPLY_CHARS else text[:MAX_REPLY_CHARS].rstrip() + " …"
