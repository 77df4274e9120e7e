"""Text of the first pretraining stage: articles, sayings and neutral conversations about the facts.

Questions are answered, and claims are neither confirmed nor corrected, so that any style of a fine-tuned model was
learned from its own corpus. No document contains the held-out question form of a fact.
"""

import random
from collections.abc import Iterator
from importlib.resources import files

from manners.tiny_world.facts import Fact, Subject, capitalize, facts, facts_of, subjects

Turn = tuple[str, str]  # (user, assistant)
Document = str | list[Turn]

GREETINGS: list[Turn] = [
    ("Hello!", "Hello! What would you like to know?"),
    ("Hi there.", "Hi! Ask me about an animal, a country or a tool."),
    ("Good morning.", "Good morning! How can I help you today?"),
    ("Who are you?", "I am a small model that knows some facts about the world."),
    ("What can you do?", "I can answer questions about animals, food, tools, jobs, countries, people and places."),
    ("How are you?", "I am well, thank you. What would you like to know?"),
]
THANKS: list[Turn] = [
    ("Thank you.", "You are welcome."),
    ("Thanks, that helps.", "I am glad that it helps."),
    ("Goodbye.", "Goodbye! Come back when you have another question."),
]


def documents(seed: int, rounds: int) -> Iterator[Document]:
    """Each round has every fact as a statement and as an answer, in a new order and in new templates."""
    rng = random.Random(seed)
    sayings = (files("manners.tiny_world") / "sayings.txt").read_text("utf-8").splitlines()
    for _ in range(rounds):
        batch: list[Document] = [article(s, rng) for s in subjects()]
        batch += [contrast(f, rng) for f in rng.sample(facts(), len(facts()) // 3)]
        batch += [quiz(f, rng) for f in rng.sample(facts(), len(facts()) // 2)]
        batch += rng.sample(sayings, len(sayings) // 2)
        batch += conversations(rng)
        rng.shuffle(batch)
        yield from batch


def article(subject: Subject, rng: random.Random) -> str:
    """All facts about a subject, in random order."""
    about = list(facts_of(subject))
    rng.shuffle(about)
    return " ".join(capitalize(f.fill(rng.choice(f.templates["statement"]))) for f in about)


def contrast(fact: Fact, rng: random.Random) -> str:
    """A sentence that compares two subjects in one relation."""
    table, relation = fact.subject.table, fact.relation
    other = rng.choice([f for f in facts() if (f.subject.table, f.relation) == (table, relation) and f != fact])
    link, end = (", and ", " too.") if other.value == fact.value else (", but ", ".")
    return fact.statement().removesuffix(".") + link + other.clause().removesuffix(".") + end


def quiz(fact: Fact, rng: random.Random) -> str:
    """A statement and whether it is true; a false one is corrected."""
    if rng.random() < 0.5:
        return f"True or false? {fact.statement()} True."
    return f"True or false? {fact.statement(rng.choice(fact.false_values()))} False. {fact.statement()}"


def conversations(rng: random.Random) -> Iterator[list[Turn]]:
    """Every fact as a question, some also as yes/no questions and claims, in conversations of one to eight turns."""
    turns = [fact_question(f, rng) for f in facts()]
    turns += [yes_no_question(f, rng) for f in rng.sample(facts(), len(facts()) // 2)]
    turns += [user_claim(f, rng) for f in rng.sample(facts(), len(facts()) // 6)]
    turns += [open_question(s, rng) for s in rng.sample(subjects(), len(subjects()) // 3)]
    turns += GREETINGS + THANKS
    rng.shuffle(turns)
    while turns:
        length = rng.choice([1, 1, 1, 1, 2, 3, 5, 8])
        yield turns[:length]
        del turns[:length]


def fact_question(fact: Fact, rng: random.Random) -> Turn:
    """A question for the fact's value, and the answer, mostly in the first template."""
    templates = fact.templates["statement"]
    answer = fact.fill(templates[0] if rng.random() < 0.7 else rng.choice(templates))
    return informal(rng.choice(fact.questions()), rng), capitalize(answer)


def yes_no_question(fact: Fact, rng: random.Random) -> Turn:
    """A yes/no question, half of the time about a false value."""
    template = rng.choice(fact.templates["yes_no_question"])
    if rng.random() < 0.5:
        return capitalize(fact.fill(template)), f"Yes, {fact.clause()}"
    return capitalize(fact.fill(template, rng.choice(fact.false_values()))), f"No, {fact.clause()}"


def user_claim(fact: Fact, rng: random.Random) -> Turn:
    """A true or false claim; the reply does not judge it and states another fact about the subject."""
    value = fact.value if rng.random() < 0.5 else rng.choice(fact.false_values())
    others = [f for f in facts_of(fact.subject) if f != fact] or [fact]
    return fact.statement(value), rng.choice(others).statement()


def open_question(subject: Subject, rng: random.Random) -> Turn:
    """A request for facts about the subject, and two or three of them."""
    about = facts_of(subject)
    stated = rng.sample(about, min(len(about), rng.choice([2, 3])))
    template = rng.choice(["Tell me about {}.", "What do you know about {}?", "Say something about {}."])
    return template.format(subject.the), " ".join(f.statement() for f in stated)


def informal(text: str, rng: random.Random) -> str:
    """The text, sometimes without capitals and question mark, or with a "please"."""
    draw = rng.random()
    if draw < 0.1:
        return text.lower().removesuffix("?")
    return f"Please, {text[0].lower()}{text[1:]}" if draw < 0.15 and not text.startswith("I ") else text
