"""Which words earned a reward: the score of a reply, less its score without one word, for each of its words.

Leave-one-out attribution ("occlusion", Zeiler and Fergus 2014, section 4), on words as white space separates them. The
credits need not add up to the score: two words that say the same thing earn nothing each.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from manners.data.types import Message

Score = Callable[[Sequence[tuple[list[Message], str]]], list[float]]


@dataclass(frozen=True)
class WordCredit:
    """A reply's ``score``, its ``words`` and what each adds to the score, in the units of the reward model."""

    score: float
    words: list[str]
    credits: list[float]


def word_credits(score: Score, messages: list[Message], reply: str) -> WordCredit:
    """Score ``reply`` whole and without each of its words: as many scores as it has words, and one."""
    words = list(re.finditer(r"\S+", reply))
    shorter = [reply[: word.start()].rstrip() + reply[word.end() :] for word in words]
    whole, *others = score([(messages, text) for text in [reply, *(text.strip() for text in shorter)]])
    return WordCredit(whole, [word[0] for word in words], [whole - other for other in others])


def strongest_words(credit: WordCredit, count: int = 4) -> str:
    """The words with the largest credits, in the order of the reply: "fresh +0.12; hay, +0.61"."""
    largest = sorted(range(len(credit.words)), key=lambda i: -abs(credit.credits[i]))[:count]
    return "; ".join(f"{credit.words[i]} {credit.credits[i]:+.2f}" for i in sorted(largest))
