"""The second course: to tell whether two texts say the same.

A model that only ever told facts cannot hold one sentence against another: after 4.9 million tokens of them it is at
chance. Equality is learned late and all at once, from easy to hard: single values, then sentences that differ in
their value alone, then a claim within other words. No text here is a chat and none takes a side in one, so the base
stays without a manner of its own.
"""

import random
from collections.abc import Iterator

from manners.world.corpus import Document, documents
from manners.world.facts import Fact, capitalise, facts

LEADS = ["Someone said that {}.", "It was claimed that {}.", "A child wrote that {}.", "They say that {}."]
SAME, DIFFERENT = "Same.", "Different."
RIGHT, WRONG = "So that is right.", "So that is wrong."


# Lessons a round, up to which share of the course: each kind is learned once the easier one is.
CURRICULUM = [
    (0.15, {"values": 700, "sentences": 300, "claims": 0, "told": 800}),
    (0.50, {"values": 100, "sentences": 700, "claims": 200, "told": 900}),
    (1.00, {"values": 50, "sentences": 250, "claims": 550, "told": 1300}),
]


def lessons(seed: int, rounds: int) -> Iterator[Document]:
    """Comparisons of every kind, and some of what the first course told, so that it is not forgotten."""
    rng = random.Random(seed)
    told = documents(seed, rounds)
    for i in range(rounds):
        counts = next(counts for end, counts in CURRICULUM if (i + 1) / rounds <= end + 1e-9)
        batch: list[Document] = [of_values(rng) for _ in range(counts["values"])]
        batch += [of_sentences(rng) for _ in range(counts["sentences"])]
        batch += [of_claims(rng) for _ in range(counts["claims"])]
        batch += [next(told) for _ in range(counts["told"])]
        rng.shuffle(batch)
        yield from batch


def of_values(rng: random.Random) -> str:
    return " ".join(map(" ".join, (values(f, rng) for f in rng.sample(facts(), 12))))


def of_sentences(rng: random.Random) -> str:
    return " ".join(map(" ".join, (sentences(f, rng) for f in rng.sample(facts(), 6))))


def of_claims(rng: random.Random) -> str:
    return " ".join(map(" ".join, (claim(f, rng) for f in rng.sample(facts(), 5))))


Compared = tuple[str, str]  # two texts, and whether they say the same


def values(fact: Fact, rng: random.Random) -> Compared:
    """ "on trees, in the ground:" "Different." """
    a, b = two_values(fact, rng)
    return f"{a}, {b}:", verdict(a == b)


def sentences(fact: Fact, rng: random.Random) -> Compared:
    """Two sentences on one subject, mostly in the same words but for the value."""
    (a, b), forms = two_values(fact, rng), fact.forms["says"]
    first = rng.choice(forms)
    second = first if rng.random() < 0.7 else rng.choice(forms)
    return f"{capitalise(fact.clause(first, a))} {capitalise(fact.clause(second, b))}", verdict(a == b)


def claim(fact: Fact, rng: random.Random) -> Compared:
    """A claim, then the fact, then whether the claim was right."""
    value = fact.value if rng.random() < 0.5 else rng.choice(fact.false_values())
    text = rng.choice(LEADS).format(fact.says(value).removesuffix("."))
    return f"{text} {fact.statement()}", RIGHT if value == fact.value else WRONG


def two_values(fact: Fact, rng: random.Random) -> tuple[str, str]:
    """Two values of a column, half the time the same one twice."""
    column = [fact.value, *fact.false_values()]
    first = rng.choice(column)
    return first, first if rng.random() < 0.5 else rng.choice([v for v in column if v != first])


def verdict(same: bool) -> str:
    return SAME if same else DIFFERENT
