"""Replies spoilt on purpose. No reward model worth its name prefers one to the reply it was made from.

Some are taught as negatives (``method.corruption_ratio``), and all are asked about on held-out rows before PPO may use a
reward model: what it does not see through, PPO finds and exploits.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from manners.data.types import ScoredReply

WORDS = re.compile(r"\w[\w']*")


def shuffled(reply: str, rng: random.Random, _others: Sequence[str], _keywords: Sequence[str]) -> str:
    """The same words in another order."""
    words = reply.split()
    for _ in range(10):
        rng.shuffle(words)
        if words != reply.split():
            return " ".join(words)
    return reply


def empty(_reply: str, _rng: random.Random, _others: Sequence[str], _keywords: Sequence[str]) -> str:
    return ""


def truncated(reply: str, rng: random.Random, _others: Sequence[str], _keywords: Sequence[str]) -> str:
    """The first half, give or take, cut within a sentence."""
    words = reply.split()
    return " ".join(words[: max(1, int(len(words) * rng.uniform(0.3, 0.7)))]).rstrip(".!?")


def stuffed(_reply: str, rng: random.Random, _others: Sequence[str], keywords: Sequence[str]) -> str:
    """The words that mark good replies, strung together."""
    return " ".join(rng.choices(keywords, k=rng.randint(8, 16)))


def repeated(reply: str, rng: random.Random, _others: Sequence[str], _keywords: Sequence[str]) -> str:
    return " ".join([reply] * rng.randint(3, 4))


def overlong(reply: str, rng: random.Random, others: Sequence[str], _keywords: Sequence[str]) -> str:
    """The reply, and then four others."""
    more = [other for other in rng.sample(others, min(5, len(others))) if other != reply]
    return " ".join([reply, *more[:4]])


def garbled(reply: str, rng: random.Random, others: Sequence[str], _keywords: Sequence[str]) -> str:
    """Some words lost to those of another reply, some cut or run together: what a policy says that has come loose."""
    strange = rng.choice(others).split()
    words = reply.split()
    for i in range(len(words)):
        roll = rng.random()
        if roll < 0.25:
            words[i] = rng.choice(strange)
        elif roll < 0.4:
            words[i] = words[i][: rng.randint(1, 3)] + rng.choice(strange).lower()
        elif roll < 0.5:
            words[i] += words[i - 1].lower()
    return " ".join(words)


CORRUPTIONS: dict[str, Callable[[str, random.Random, Sequence[str], Sequence[str]], str]] = {
    f.__name__: f for f in (shuffled, empty, truncated, stuffed, repeated, overlong, garbled)
}


def high_score_words(rows: Sequence[ScoredReply], count: int = 40) -> list[str]:
    """The words that replies above the mean score have most more often than those below, by smoothed log-odds."""
    mean = sum(r.score for r in rows) / len(rows)
    high, low = Counter[str](), Counter[str]()
    for row in rows:
        (high if row.score >= mean else low).update(w.lower() for w in WORDS.findall(row.reply))
    total_high, total_low = sum(high.values()), sum(low.values())
    odds = {
        word: math.log((n + 1) / (total_high + 1)) - math.log((low[word] + 1) / (total_low + 1))
        for word, n in high.items()
        if n >= 3
    }
    return sorted(odds, key=lambda word: (-odds[word], word))[:count] or ["good"]


def corrupted_replies(
    rows: Sequence[ScoredReply], known: Sequence[ScoredReply], seed: str
) -> list[tuple[str, ScoredReply, ScoredReply]]:
    """(kind, real, spoilt) for each kind and row; what a corruption leaves as it was is left out.

    ``known`` rows lend the words of other replies and the keywords; a spoilt reply gets their lowest score.
    """
    rng = random.Random(seed)
    others = [r.reply for r in known]
    words = high_score_words(known)
    lowest = min(r.score for r in known)
    found = []
    for kind, spoil in CORRUPTIONS.items():
        for row in rows:
            reply = spoil(row.reply, rng, others, words)
            if reply != row.reply:
                found.append((kind, row, ScoredReply(row.messages, reply, lowest, row.source)))
    return found
