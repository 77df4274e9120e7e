"""The second course and the third: to tell whether two texts say the same, and whether somebody had it right.

A model that only ever told facts cannot hold one sentence against another: after 4.9 million tokens of them it is at
chance. Equality is learned late and all at once, from easy to hard: single values, then sentences that differ in
their value alone, then a claim within other words. The third course asks it of chats, in many words: a verdict that
hangs on one phrase is of no use to those who are taught others. A verdict is given only where it is asked for, so the
base stays without a manner of its own.
"""

import random
from collections.abc import Iterator

from manners.tiny_world.corpus import Document, Turn, documents
from manners.tiny_world.facts import Fact, capitalise, facts

LEADS = ["Someone said that {}.", "It was claimed that {}.", "A child wrote that {}.", "They say that {}."]
SAME, DIFFERENT = "Same.", "Different."
RIGHT, WRONG = "So that is right.", "So that is wrong."
VERDICTS = [  # of a claim that is right, and of one that is wrong
    (RIGHT, WRONG),
    ("Right.", "Wrong."),
    ("That was true.", "That was not true."),
    ("The claim holds.", "The claim does not hold."),
    ("It is so.", "It is otherwise."),
    ("They were right.", "They were mistaken."),
    ("They knew it.", "They had it wrong."),
]
ASKED = ["Was I right?", "Did I have that right?", "Is it as I said?", "So was it true, what I said?"]
ANSWERS = [
    ("Yes, you were right.", "No, you were wrong."),
    ("You were right.", "You were mistaken."),
    ("What you said is true.", "What you said is false."),
    ("You had it right.", "You had it wrong."),
    ("It is as you said.", "It is otherwise."),
    ("Yes.", "No."),
]


# Lessons a round, up to which share of the course: each kind is learned once the easier one is.
CURRICULUM = [
    (0.15, {"values": 700, "sentences": 300, "claims": 0, "told": 800}),
    (0.50, {"values": 100, "sentences": 700, "claims": 200, "told": 900}),
    (1.00, {"values": 50, "sentences": 250, "claims": 550, "told": 1300}),
]


def comparison_documents(seed: int, rounds: int) -> Iterator[Document]:
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


def verdict_documents(seed: int, rounds: int) -> Iterator[Document]:
    """Claims and verdicts in many words, most of them in chats, and again some of the earlier courses."""
    rng = random.Random(f"talks/{seed}")
    told = documents(seed + 2, rounds)
    for _ in range(rounds):
        batch: list[Document] = [of_verdicts(rng) for _ in range(350)]
        batch += [of_turns(rng) for _ in range(700)]
        batch += [of_sentences(rng) for _ in range(80)]
        batch += [next(told) for _ in range(1000)]
        rng.shuffle(batch)
        yield from batch


def of_verdicts(rng: random.Random) -> str:
    parts = []
    for fact in rng.sample(facts(), 5):
        told, right = told_claim(fact, [*LEADS, "{}."], rng)
        parts.append(f"{told} {fact.statement()} {rng.choice(VERDICTS)[0 if right else 1]}")
    return " ".join(parts)


def of_turns(rng: random.Random) -> list[Turn]:
    """A claim, answered by the fact; was it right? Or both at once."""
    turns: list[Turn] = []
    for fact in rng.sample(facts(), 3):
        told, right = told_claim(fact, ["{}.", "{}, no?", "I heard that {}.", "They say that {}."], rng)
        answer = rng.choice(ANSWERS)[0 if right else 1]
        if rng.random() < 0.5:
            turns += [(told, fact.statement()), (rng.choice(ASKED), answer)]
        else:
            turns.append((f"{told} {rng.choice(ASKED)}", f"{fact.statement()} {answer}"))
    return turns


def told_claim(fact: Fact, leads: list[str], rng: random.Random) -> tuple[str, bool]:
    value = fact.value if rng.random() < 0.5 else rng.choice(fact.false_values())
    return capitalise(rng.choice(leads).format(fact.says(value).removesuffix("."))), value == fact.value


def of_values(rng: random.Random) -> str:
    return " ".join(map(" ".join, (value_comparison(f, rng) for f in rng.sample(facts(), 12))))


def of_sentences(rng: random.Random) -> str:
    return " ".join(map(" ".join, (sentence_comparison(f, rng) for f in rng.sample(facts(), 6))))


def of_claims(rng: random.Random) -> str:
    return " ".join(map(" ".join, (claim_comparison(f, rng) for f in rng.sample(facts(), 5))))


Compared = tuple[str, str]  # two texts, and whether they say the same


def value_comparison(fact: Fact, rng: random.Random) -> Compared:
    """ "on trees, in the ground:" "Different." """
    a, b = two_values(fact, rng)
    return f"{a}, {b}:", verdict_word(a == b)


def sentence_comparison(fact: Fact, rng: random.Random) -> Compared:
    """Two sentences on one subject, mostly in the same words but for the value."""
    (a, b), forms = two_values(fact, rng), fact.forms["says"]
    first = rng.choice(forms)
    second = first if rng.random() < 0.7 else rng.choice(forms)
    return f"{capitalise(fact.clause(first, a))} {capitalise(fact.clause(second, b))}", verdict_word(a == b)


def claim_comparison(fact: Fact, rng: random.Random) -> Compared:
    """A claim, then the fact, then whether the claim was right."""
    value = fact.value if rng.random() < 0.5 else rng.choice(fact.false_values())
    text = rng.choice(LEADS).format(fact.says(value).removesuffix("."))
    return f"{text} {fact.statement()}", RIGHT if value == fact.value else WRONG


def two_values(fact: Fact, rng: random.Random) -> tuple[str, str]:
    """Two values of a column, half the time the same one twice."""
    column = [fact.value, *fact.false_values()]
    first = rng.choice(column)
    return first, first if rng.random() < 0.5 else rng.choice([v for v in column if v != first])


def verdict_word(same: bool) -> str:
    return SAME if same else DIFFERENT
