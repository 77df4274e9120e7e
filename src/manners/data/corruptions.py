"""Replies corrupted on purpose: a sound reward model prefers none of them to the reply that it was made from.

Some are trained on as negatives (``method.corruption_ratio``), and all are scored on held-out rows before PPO may use
a reward model: a policy learns to exploit the corruptions that the reward model does not recognize.
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
    """No text at all."""
    return ""


def truncated(reply: str, rng: random.Random, _others: Sequence[str], _keywords: Sequence[str]) -> str:
    """The first 30 to 70 percent of the words, without final punctuation."""
    words = reply.split()
    return " ".join(words[: max(1, int(len(words) * rng.uniform(0.3, 0.7)))]).rstrip(".!?")


def stuffed(_reply: str, rng: random.Random, _others: Sequence[str], keywords: Sequence[str]) -> str:
    """Words that are typical of good replies, in random order."""
    return " ".join(rng.choices(keywords, k=rng.randint(8, 16)))


def repeated(reply: str, rng: random.Random, _others: Sequence[str], _keywords: Sequence[str]) -> str:
    """The reply three or four times."""
    return " ".join([reply] * rng.randint(3, 4))


def overlong(reply: str, rng: random.Random, others: Sequence[str], _keywords: Sequence[str]) -> str:
    """The reply followed by up to four other replies."""
    more = [other for other in rng.sample(others, min(5, len(others))) if other != reply]
    return " ".join([reply, *more[:4]])


def garbled(reply: str, rng: random.Random, others: Sequence[str], _keywords: Sequence[str]) -> str:
    """Some words replaced by those of another reply, some cut or run together, like a collapsed policy."""
    foreign_words = rng.choice(others).split()
    words = reply.split()
    for i in range(len(words)):
        draw = rng.random()
        if draw < 0.25:
            words[i] = rng.choice(foreign_words)
        elif draw < 0.4:
            words[i] = words[i][: rng.randint(1, 3)] + rng.choice(foreign_words).lower()
        elif draw < 0.5:
            words[i] += words[i - 1].lower()
    return " ".join(words)


def misplaced(reply: str, rng: random.Random, others: Sequence[str], _keywords: Sequence[str]) -> str:
    """One of ``others``, which are good replies to other prompts, with the same last character: a question, say.

    It assumes that a score is about the prompt, too. Where it is about the reply alone, leave prompts out of the rows.
    """
    return rng.choice(others) if others else reply


def garbled_word(reply: str, rng: random.Random, others: Sequence[str], _keywords: Sequence[str]) -> str:
    """One longer word with its end replaced by that of a word of another reply: "evidence" becomes "evidght"."""
    words = reply.split()
    long = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    foreign = [word for word in rng.choice(others).split() if len(word) > 4 and word.isalpha()]
    if long and foreign:
        i = rng.choice(long)
        words[i] = words[i][: rng.randint(2, len(words[i]) - 2)] + rng.choice(foreign)[-3:].lower()
    return " ".join(words)


CORRUPTIONS: dict[str, Callable[[str, random.Random, Sequence[str], Sequence[str]], str]] = {
    f.__name__: f for f in (shuffled, empty, truncated, stuffed, repeated, overlong, garbled, garbled_word, misplaced)
}
MISPLACED = misplaced.__name__


def high_score_words(rows: Sequence[ScoredReply], count: int = 40) -> list[str]:
    """The words most typical of replies at or above the mean score against those below, by smoothed log-odds."""
    mean = sum(r.score for r in rows) / len(rows)
    high, low = Counter[str](), Counter[str]()
    for row in rows:
        (high if row.score >= mean else low).update(w.lower() for w in WORDS.findall(row.reply))
    total_high, total_low = sum(high.values()), sum(low.values())
    log_odds = {
        word: math.log((n + 1) / (total_high + 1)) - math.log((low[word] + 1) / (total_low + 1))
        for word, n in high.items()
        if n >= 3
    }
    return sorted(log_odds, key=lambda word: (-log_odds[word], word))[:count] or ["good"]


def corrupted_replies(
    rows: Sequence[ScoredReply], train_rows: Sequence[ScoredReply], seed: str
) -> list[tuple[str, ScoredReply, ScoredReply]]:
    """(kind, original, corrupted) for each kind and row, without those that the corruption leaves unchanged.

    The words of other replies and the keywords come from ``train_rows``; a corrupted reply gets their lowest score.
    Texts without a prompt cannot be misplaced.
    """
    rng = random.Random(seed)
    others = [r.reply for r in train_rows]
    keywords = high_score_words(train_rows)
    lowest, mean = min(r.score for r in train_rows), sum(r.score for r in train_rows) / len(train_rows)
    good: dict[str, list[str]] = {}  # replies by their last character
    for row in train_rows:
        if row.score >= mean:
            good.setdefault(row.reply[-1:], []).append(row.reply)
    corrupted = []
    for kind, corrupt in CORRUPTIONS.items():
        for row in rows:
            lenders = good.get(row.reply[-1:], []) if corrupt is misplaced else others
            reply = corrupt(row.reply, rng, lenders, keywords)
            if reply != row.reply and (row.messages or corrupt is not misplaced):
                corrupted.append((kind, row, ScoredReply(row.messages, reply, lowest, row.source)))
    return corrupted
