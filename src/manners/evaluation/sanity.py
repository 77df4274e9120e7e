"""Does a reward model see through replies that are spoilt on purpose? What it does not, PPO finds and exploits."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from manners.data.corruptions import CORRUPTIONS, corrupt
from manners.data.rows import Message, Scored
from manners.errors import MannersError
from manners.evaluation.report import cell, plain
from manners.evaluation.stats import Estimate, grouped_share, share

MOST = 200  # real replies that are spoilt
SHOWN = 160  # characters of a reply in the tables

Score = Callable[[list[tuple[list[Message], str]]], list[float]]


@dataclass(frozen=True)
class Example:
    prompt: str  # the last turn before the reply; "" of plain text
    real: str
    spoilt: str
    real_score: float
    spoilt_score: float


@dataclass(frozen=True)
class Kind:
    below: Estimate  # share of the spoilt replies that score below the real one
    count: int
    worst: Example  # whose spoilt reply scores highest over the real one


@dataclass(frozen=True)
class Sanity:
    passed: Estimate  # share of all spoilt replies that score below the real one
    count: int
    kinds: dict[str, Kind]

    def metrics(self, when: str) -> dict[str, float]:
        found = {f"{when}/sanity": self.passed.value}
        return found | {f"{when}/sanity_{name}": kind.below.value for name, kind in self.kinds.items()}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Sanity":
        kinds = {
            name: Kind(Estimate(**k["below"]), k["count"], Example(**k["worst"])) for name, k in saved["kinds"].items()
        }
        return cls(Estimate(**saved["passed"]), saved["count"], kinds)


def check(score: Score, rows: Sequence[Scored], known: Sequence[Scored], seed: int) -> Sanity:
    """Spoil the good ones of the held-out ``rows`` in every way, and see whether ``score`` notices.

    Good is what scores at or above the mean of ``known``, the real training rows, which lend the foreign words. An
    equal score, or one that is no number, has noticed nothing.
    """
    real = good(rows, known, seed)
    spoilt = corrupt(real, known, f"sanity/{seed}")
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
        kinds[name] = Kind(
            share(int(below[at].sum()), len(at)),
            len(at),
            Example(
                prompt=row.messages[-1]["content"] if row.messages else "",
                real=row.reply,
                spoilt=bad.reply,
                real_score=float(real_scores[worst]),
                spoilt_score=float(spoilt_scores[worst]),
            ),
        )
    asked_of = np.bincount(of) > 0
    passed = grouped_share(np.bincount(of, below)[asked_of], np.bincount(of)[asked_of], seed)
    return Sanity(passed, len(spoilt), kinds)


def good(rows: Sequence[Scored], known: Sequence[Scored], seed: int) -> list[Scored]:
    """At most ``MOST`` of the ``rows`` that score at or above the mean of ``known``, drawn without regard to order."""
    mean = sum(r.score for r in known) / len(known)
    found = [r for r in rows if r.score >= mean and r.reply.strip()]
    if not found:
        raise MannersError(
            f"none of the {len(rows)} held-out replies scores at or above the training mean, {mean:.3g}: there is no "
            "good reply to spoil. Hold out more rows: dataset.validation_share."
        )
    return random.Random(seed).sample(found, MOST) if len(found) > MOST else found


def lines(sanity: Sanity) -> list[tuple[str, str, str, str]]:
    """Kind, share with its interval, the worst spoilt reply, and how it scored over the real one."""
    found = [("all", sanity.passed.percent(), "", "")]
    for name, kind in sanity.kinds.items():
        worst = kind.worst
        scores = f"{worst.real_score:.2f} → {worst.spoilt_score:.2f}"
        found.append((name, kind.below.percent(), shortened(worst.spoilt), scores))
    return found


HEADER = ("spoilt reply", "scores below the real one", "the worst", "real → spoilt")


def markdown(sanity: Sanity) -> list[str]:
    table = [f"| {' | '.join(HEADER)} |", "| --- | --- | --- | --- |"]
    table += [f"| {' | '.join(map(cell, line))} |" for line in lines(sanity)]
    return [*table, "", note(sanity)]


def note(sanity: Sanity) -> str:
    return (
        f"{sanity.count} replies spoilt on purpose. The worst of a kind scores highest over the reply that it was made "
        "from; where its score is not the lower one, the model was fooled."
    )


def show(console: Console, sanity: Sanity) -> None:
    table = Table(*HEADER, header_style="bold")
    for line in lines(sanity):
        table.add_row(*map(plain, line))
    console.print(table)
    console.print(note(sanity), highlight=False)


def shortened(text: str) -> str:
    """The beginning of a long reply: one that was spoilt by going on and on is not worth reading whole."""
    if not text.strip():
        return "(nothing)"
    return text if len(text) <= SHOWN else text[:SHOWN].rstrip() + " …"
