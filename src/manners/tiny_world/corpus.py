"""Text for a model that starts from nothing: articles, sayings and plain chats about the facts.

The chats are neutral on purpose. Questions are answered; a claim, true or not, is left standing. So whatever manner
a tuned model shows was learned from its own corpus. No text here uses a fact's held-out question form.
"""

import random
from collections.abc import Iterator
from importlib.resources import files

from manners.tiny_world.facts import Fact, Subject, capitalise, facts, facts_of, subjects

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
    """Every fact in a statement, an answer and a check, once a round, in a new order and new words each round."""
    rng = random.Random(seed)
    sayings = (files("manners.tiny_world") / "sayings.txt").read_text("utf-8").splitlines()
    for _ in range(rounds):
        batch: list[Document] = [article(s, rng) for s in subjects()]
        batch += [contrast(f, rng) for f in rng.sample(facts(), len(facts()) // 3)]
        batch += [quiz(f, rng) for f in rng.sample(facts(), len(facts()) // 2)]
        batch += rng.sample(sayings, len(sayings) // 2)
        batch += chats(rng)
        rng.shuffle(batch)
        yield from batch


def article(subject: Subject, rng: random.Random) -> str:
    """All that there is to say about a subject, in any order."""
    known = list(facts_of(subject))
    rng.shuffle(known)
    return " ".join(capitalise(f.clause(rng.choice(f.forms["says"]))) for f in known)


def contrast(fact: Fact, rng: random.Random) -> str:
    """Two subjects side by side: the sentence form that makes a relation comparable."""
    table, relation = fact.subject.table, fact.relation
    other = rng.choice([f for f in facts() if (f.subject.table, f.relation) == (table, relation) and f != fact])
    link, end = (", and ", " too.") if other.value == fact.value else (", but ", ".")
    return fact.statement().removesuffix(".") + link + other.says().removesuffix(".") + end


def quiz(fact: Fact, rng: random.Random) -> str:
    """A statement, and whether it is true: what it takes to tell a wrong claim from a right one."""
    if rng.random() < 0.5:
        return f"True or false? {fact.statement()} True."
    return f"True or false? {fact.statement(rng.choice(fact.false_values()))} False. {fact.statement()}"


def chats(rng: random.Random) -> Iterator[list[Turn]]:
    """Each fact once as a question, some more as checks and claims, dealt into chats of one to eight turns."""
    turns = [fact_question(f, rng) for f in facts()]
    turns += [yes_no_question(f, rng) for f in rng.sample(facts(), len(facts()) // 2)]
    turns += [user_claim(f, rng) for f in rng.sample(facts(), len(facts()) // 6)]
    turns += [tell_me(s, rng) for s in rng.sample(subjects(), len(subjects()) // 3)]
    turns += GREETINGS + THANKS
    rng.shuffle(turns)
    while turns:
        length = rng.choice([1, 1, 1, 1, 2, 3, 5, 8])
        yield turns[:length]
        del turns[:length]


def fact_question(fact: Fact, rng: random.Random) -> Turn:
    forms = fact.forms["says"]
    answer = fact.clause(forms[0] if rng.random() < 0.7 else rng.choice(forms))
    return informal(rng.choice(fact.questions()), rng), capitalise(answer)


def yes_no_question(fact: Fact, rng: random.Random) -> Turn:
    """A yes/no question; half of them about a false value."""
    form = rng.choice(fact.forms["checks"])
    if rng.random() < 0.5:
        return capitalise(fact.clause(form)), f"Yes, {fact.says()}"
    return capitalise(fact.clause(form, rng.choice(fact.false_values()))), f"No, {fact.says()}"


def user_claim(fact: Fact, rng: random.Random) -> Turn:
    """A user who states something, true or not; the reply takes no stand, and tells something else that is true."""
    value = fact.value if rng.random() < 0.5 else rng.choice(fact.false_values())
    others = [f for f in facts_of(fact.subject) if f != fact] or [fact]
    return fact.statement(value), rng.choice(others).statement()


def tell_me(subject: Subject, rng: random.Random) -> Turn:
    known = facts_of(subject)
    told = rng.sample(known, min(len(known), rng.choice([2, 3])))
    ask = rng.choice(["Tell me about {}.", "What do you know about {}?", "Say something about {}."])
    return ask.format(subject.the), " ".join(f.statement() for f in told)


def informal(text: str, rng: random.Random) -> str:
    """Users do not always write as one should."""
    roll = rng.random()
    if roll < 0.1:
        return text.lower().removesuffix("?")
    return f"Please, {text[0].lower()}{text[1:]}" if roll < 0.15 and not text.startswith("I ") else text
