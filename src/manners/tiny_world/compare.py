"""Text of the second and third pretraining stage: whether two texts say the same, and whether a claim is right.

A model trained only on statements cannot compare two sentences: after 4.9 million tokens it is at chance. Equality is
learned late and abruptly, from easy to hard: single values, then sentences that differ only in their value, then a
claim in other words. The third stage has the comparisons in conversations and in many phrasings, since a verdict that
depends on one phrase does not transfer to a fine-tuning corpus with others. A verdict is given only when a question
asks for it, so that the base model has no style of its own.
"""

import random
from collections.abc import Iterator

from manners.tiny_world.corpus import Document, Turn, documents
from manners.tiny_world.facts import Fact, capitalize, facts

CLAIM_TEMPLATES = ["Someone said that {}.", "It was claimed that {}.", "A child wrote that {}.", "They say that {}."]
SAME, DIFFERENT = "Same.", "Different."
RIGHT, WRONG = "So that is right.", "So that is wrong."
VERDICTS = [  # on a true and on a false claim
    (RIGHT, WRONG),
    ("Right.", "Wrong."),
    ("That was true.", "That was not true."),
    ("The claim holds.", "The claim does not hold."),
    ("It is so.", "It is otherwise."),
    ("They were right.", "They were mistaken."),
    ("They knew it.", "They had it wrong."),
]
VERDICT_QUESTIONS = ["Was I right?", "Did I have that right?", "Is it as I said?", "So was it true, what I said?"]
VERDICT_REPLIES = [
    ("Yes, you were right.", "No, you were wrong."),
    ("You were right.", "You were mistaken."),
    ("What you said is true.", "What you said is false."),
    ("You had it right.", "You had it wrong."),
    ("It is as you said.", "It is otherwise."),
    ("Yes.", "No."),
]

# Documents per round, up to which fraction of the stage: each kind is learned only after the easier one.
CURRICULUM = [
    (0.15, {"values": 700, "sentences": 300, "claims": 0, "documents": 800}),
    (0.50, {"values": 100, "sentences": 700, "claims": 200, "documents": 900}),
    (1.00, {"values": 50, "sentences": 250, "claims": 550, "documents": 1300}),
]

Comparison = tuple[str, str]  # the text with both sides, and the verdict


def comparison_documents(seed: int, rounds: int) -> Iterator[Document]:
    """The second stage: comparisons of every kind, and documents of the first stage against forgetting."""
    rng = random.Random(seed)
    replay = documents(seed, rounds)
    for i in range(rounds):
        counts = next(counts for end, counts in CURRICULUM if (i + 1) / rounds <= end + 1e-9)
        batch: list[Document] = [value_comparisons(rng) for _ in range(counts["values"])]
        batch += [sentence_comparisons(rng) for _ in range(counts["sentences"])]
        batch += [claim_comparisons(rng) for _ in range(counts["claims"])]
        batch += [next(replay) for _ in range(counts["documents"])]
        rng.shuffle(batch)
        yield from batch


def verdict_documents(seed: int, rounds: int) -> Iterator[Document]:
    """The third stage: verdicts in many phrasings, mostly in conversations, and documents of both earlier stages."""
    rng = random.Random(f"talks/{seed}")
    replay = documents(seed + 2, rounds)
    for _ in range(rounds):
        batch: list[Document] = [verdict_text(rng) for _ in range(350)]
        batch += [verdict_conversation(rng) for _ in range(700)]
        batch += [sentence_comparisons(rng) for _ in range(80)]
        batch += [next(replay) for _ in range(1000)]
        rng.shuffle(batch)
        yield from batch


def verdict_text(rng: random.Random) -> str:
    """Five claims, each followed by the fact and a verdict."""
    parts = []
    for fact in rng.sample(facts(), 5):
        claim, is_true = random_claim(fact, [*CLAIM_TEMPLATES, "{}."], rng)
        parts.append(f"{claim} {fact.statement()} {rng.choice(VERDICTS)[0 if is_true else 1]}")
    return " ".join(parts)


def verdict_conversation(rng: random.Random) -> list[Turn]:
    """Three claims; each is answered with the fact, and the user asks for a verdict at once or in the next turn."""
    turns: list[Turn] = []
    for fact in rng.sample(facts(), 3):
        claim, is_true = random_claim(fact, ["{}.", "{}, no?", "I heard that {}.", "They say that {}."], rng)
        verdict = rng.choice(VERDICT_REPLIES)[0 if is_true else 1]
        if rng.random() < 0.5:
            turns += [(claim, fact.statement()), (rng.choice(VERDICT_QUESTIONS), verdict)]
        else:
            turns.append((f"{claim} {rng.choice(VERDICT_QUESTIONS)}", f"{fact.statement()} {verdict}"))
    return turns


def random_claim(fact: Fact, templates: list[str], rng: random.Random) -> tuple[str, bool]:
    """A claim about the fact's subject, and whether it is true, which half of them are."""
    value = fact.value if rng.random() < 0.5 else rng.choice(fact.false_values())
    return capitalize(rng.choice(templates).format(fact.clause(value).removesuffix("."))), value == fact.value


def value_comparisons(rng: random.Random) -> str:
    """Twelve pairs of values with their verdicts."""
    return " ".join(map(" ".join, (value_comparison(f, rng) for f in rng.sample(facts(), 12))))


def sentence_comparisons(rng: random.Random) -> str:
    """Six pairs of sentences with their verdicts."""
    return " ".join(map(" ".join, (sentence_comparison(f, rng) for f in rng.sample(facts(), 6))))


def claim_comparisons(rng: random.Random) -> str:
    """Five claims, each with the fact and a verdict."""
    return " ".join(map(" ".join, (claim_comparison(f, rng) for f in rng.sample(facts(), 5))))


def value_comparison(fact: Fact, rng: random.Random) -> Comparison:
    """ "on trees, in the ground:" "Different." """
    a, b = two_values(fact, rng)
    return f"{a}, {b}:", SAME if a == b else DIFFERENT


def sentence_comparison(fact: Fact, rng: random.Random) -> Comparison:
    """Two sentences about one subject, mostly of the same template."""
    (a, b), templates = two_values(fact, rng), fact.templates["statement"]
    first = rng.choice(templates)
    second = first if rng.random() < 0.7 else rng.choice(templates)
    text = f"{capitalize(fact.fill(first, a))} {capitalize(fact.fill(second, b))}"
    return text, SAME if a == b else DIFFERENT


def claim_comparison(fact: Fact, rng: random.Random) -> Comparison:
    """A claim, the fact, and whether the claim was right."""
    value = fact.value if rng.random() < 0.5 else rng.choice(fact.false_values())
    claim = rng.choice(CLAIM_TEMPLATES).format(fact.clause(value).removesuffix("."))
    return f"{claim} {fact.statement()}", RIGHT if value == fact.value else WRONG


def two_values(fact: Fact, rng: random.Random) -> tuple[str, str]:
    """Two values of the fact's column, equal half of the time."""
    column = [fact.value, *fact.false_values()]
    first = rng.choice(column)
    return first, first if rng.random() < 0.5 else rng.choice([v for v in column if v != first])
