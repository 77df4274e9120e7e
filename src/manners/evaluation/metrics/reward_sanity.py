"""Does a reward model see through replies that are spoilt on purpose? What it does not, PPO finds and exploits."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from manners.data.corruptions import CORRUPTIONS, corrupted_replies
from manners.data.types import Message, ScoredReply
from manners.errors import MannersError
from manners.evaluation.reports.before_after import as_text, markdown_cell
from manners.evaluation.stats import Estimate, clustered_proportion, proportion

MOST = 200  # real replies that are spoilt
SHOWN = 160  # characters of a reply in the tables

Score = Callable[[list[tuple[list[Message], str]]], list[float]]


@dataclass(frozen=True)
class SanityExample:
    prompt: str  # the last turn before the reply; "" of plain text
    real: str
    spoilt: str
    real_score: float
    spoilt_score: float


@dataclass(frozen=True)
class CorruptionResult:
    below: Estimate  # share of the spoilt replies that score below the real one
    count: int
    worst: SanityExample  # whose spoilt reply scores highest over the real one


@dataclass(frozen=True)
class SanityResult:
    passed: Estimate  # share of all spoilt replies that score below the real one
    count: int
    kinds: dict[str, CorruptionResult]

    def metrics(self, when: str) -> dict[str, float]:
        found = {f"{when}/sanity": self.passed.value}
        return found | {f"{when}/sanity_{name}": kind.below.value for name, kind in self.kinds.items()}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "SanityResult":
        kinds = {
            name: CorruptionResult(Estimate(**k["below"]), k["count"], SanityExample(**k["worst"]))
            for name, k in saved["kinds"].items()
        }
        return cls(Estimate(**saved["passed"]), saved["count"], kinds)


def check_sanity(score: Score, rows: Sequence[ScoredReply], known: Sequence[ScoredReply], seed: int) -> SanityResult:
    """Spoil the good ones of the held-out ``rows`` in every way, and see whether ``score`` notices.

    Good is what scores at or above the mean of ``known``, the real training rows, which lend the foreign words. An
    equal score, or one that is no number, has noticed nothing.
    """
    real = good_replies(rows, known, seed)
    spoilt = corrupted_replies(real, known, f"sanity/{seed}")
    asked = [(r.messages, r.reply) for r in [*real, *(bad for _, _, bad in spoilt)]]
    scores = np.array(score(asked), float)
    place = {id(r): i for i, r in enumerate(real)}
    of = np.array([place[id(r)] for _, r, _ in spoilt])  # (N,) the real reply of each spoilt one
    real_scores, spoilt_scores = scores[of], scores[len(real) :]
    below = spoilt_scores < real_scores
    over = np.nan_to_num(spoilt_scores - real_scores, nan=np.inf)
    kinds = {}
    for name in CORRUPTIONS:
        at = np.array([i for i, (kind, _, _) in enumerate(spoilt) if kind == name], dtype=int)
        if not len(at):
            continue
        worst = at[over[at].argmax()]
        _, row, bad = spoilt[worst]
        kinds[name] = CorruptionResult(
            proportion(int(below[at].sum()), len(at)),
            len(at),
            SanityExample(
                prompt=row.messages[-1]["content"] if row.messages else "",
                real=row.reply,
                spoilt=bad.reply,
                real_score=float(real_scores[worst]),
                spoilt_score=float(spoilt_scores[worst]),
            ),
        )
    asked_of = np.bincount(of) > 0
    passed = clustered_proportion(np.bincount(of, below)[asked_of], np.bincount(of)[asked_of], seed)
    return SanityResult(passed, len(spoilt), kinds)


def good_replies(rows: Sequence[ScoredReply], known: Sequence[ScoredReply], seed: int) -> list[ScoredReply]:
    """At most ``MOST`` of the ``rows`` that score at or above the mean of ``known``, drawn without regard to order."""
    mean = sum(r.score for r in known) / len(known)
    found = [r for r in rows if r.score >= mean and r.reply.strip()]
    if not found:
        raise MannersError(
            f"none of the {len(rows)} held-out replies scores at or above the training mean, {mean:.3g}: there is no "
            "good reply to spoil. Hold out more rows: dataset.validation_share."
        )
    return random.Random(seed).sample(found, MOST) if len(found) > MOST else found


def sanity_rows(sanity: SanityResult) -> list[tuple[str, str, str, str]]:
    """Kind, share with its interval, the worst spoilt reply, and how it scored over the real one."""
    found = [("all", sanity.passed.percent(), "", "")]
    for name, kind in sanity.kinds.items():
        worst = kind.worst
        scores = f"{worst.real_score:.2f} → {worst.spoilt_score:.2f}"
        found.append((name, kind.below.percent(), shorten_reply(worst.spoilt), scores))
    return found


HEADER = ("spoilt reply", "scores below the real one", "the worst", "real → spoilt")


def sanity_markdown(sanity: SanityResult) -> list[str]:
    table = [f"| {' | '.join(HEADER)} |", "| --- | --- | --- | --- |"]
    table += [f"| {' | '.join(map(markdown_cell, line))} |" for line in sanity_rows(sanity)]
    return [*table, "", sanity_note(sanity)]


def sanity_note(sanity: SanityResult) -> str:
    return (
        f"{sanity.count} replies spoilt on purpose. The worst of a kind scores highest over the reply that it was made "
        "from; where its score is not the lower one, the model was fooled."
    )


def show_sanity(console: Console, sanity: SanityResult) -> None:
    table = Table(*HEADER, header_style="bold")
    for line in sanity_rows(sanity):
        table.add_row(*map(as_text, line))
    console.print(table)
    console.print(sanity_note(sanity), highlight=False)


def shorten_reply(text: str) -> str:
    """The beginning of a long reply: one that was spoilt by going on and on is not worth reading whole."""
    if not text.strip():
        return "(nothing)"
    return text if len(text) <= SHOWN else text[:SHOWN].rstrip() + " …"
