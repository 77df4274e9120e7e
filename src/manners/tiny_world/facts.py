"""The facts of the tiny world and the sentences that state and ask them.

A table (``facts/animals.tsv``) has a subject per line and a relation per column; ``templates.yaml`` has the sentence
templates of each relation. A cell is empty where no plain fact exists.
"""

import csv
import random
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml


@dataclass(frozen=True)
class Subject:
    name: str  # as in mid-sentence: "lion", "France", "the Eiffel Tower"
    table: str  # "animals"
    common: bool  # a common noun takes an article: "the lion", "a lion"

    @property
    def the(self) -> str:
        """The name with the definite article if it takes one."""
        return f"the {self.name}" if self.common else self.name

    @property
    def a(self) -> str:
        """The name with the indefinite article if it takes one."""
        return with_article(self.name) if self.common else self.name


@dataclass(frozen=True)
class Fact:
    subject: Subject
    relation: str  # the column: "capital"
    value: str  # the cell: "Paris"

    @property
    def templates(self) -> dict[str, list[str]]:
        """The sentence templates of the relation, by kind."""
        return relations()[self.subject.table][self.relation]

    def fill(self, template: str, value: str | None = None) -> str:
        """The template with its slots filled, uncapitalized; ``value`` replaces the true value if given."""
        s, v = self.subject, self.value if value is None else value
        return template.format(the=s.the, a=s.a, s=s.name, v=v, av=with_article(v))

    def clause(self, value: str | None = None) -> str:
        """The fact in its first template, which users' claims and the model's replies have."""
        return self.fill(self.templates["statement"][0], value)

    def statement(self, value: str | None = None) -> str:
        """The clause as a sentence of its own."""
        return capitalize(self.clause(value))

    def held_out_question(self) -> str:
        """The question form that no training text has for this fact."""
        return capitalize(self.fill(self.templates["question"][self._held_out]))

    def questions(self) -> list[str]:
        """All question forms except the held-out one."""
        return [capitalize(self.fill(t)) for i, t in enumerate(self.templates["question"]) if i != self._held_out]

    @property
    def _held_out(self) -> int:
        key = f"{self.subject.table}/{self.subject.name}/{self.relation}"
        return random.Random(key).randrange(len(self.templates["question"]))

    def false_values(self) -> list[str]:
        """The other values of the column, sorted; each makes the statement false."""
        return [v for v in column_values(self.subject.table, self.relation) if v != self.value]


def with_article(noun: str) -> str:
    """ "a lion", "an apple": chosen by the initial sound, as far as the spelling shows it."""
    vowel = re.match(r"(?i)[aeiou]", noun) and not re.match(r"(?i)(uni|use|eu|one)", noun)
    return f"an {noun}" if vowel or re.match(r"(?i)(hour|heir|honest)", noun) else f"a {noun}"


def capitalize(sentence: str) -> str:
    """The sentence with a capital first letter; the other letters stay as they are."""
    return sentence[:1].upper() + sentence[1:]


@cache
def relations() -> dict[str, dict]:
    """The sentence templates by table and relation."""
    return yaml.safe_load((files("manners.tiny_world") / "templates.yaml").read_text("utf-8"))


@cache
def facts() -> tuple[Fact, ...]:
    """All facts, in the order of the tables."""
    result = []
    for table, templates in relations().items():
        text = (files("manners.tiny_world") / "facts" / f"{table}.tsv").read_text("utf-8")
        for row in csv.DictReader(text.splitlines(), delimiter="\t"):
            subject = Subject(row["subject"], table, templates.get("common", False))
            result += [Fact(subject, r, row[r]) for r in row if r != "subject" and row[r]]
    return tuple(result)


@cache
def subjects() -> tuple[Subject, ...]:
    """All subjects, in the order of the tables."""
    return tuple(dict.fromkeys(f.subject for f in facts()))


@cache
def facts_of(subject: Subject) -> tuple[Fact, ...]:
    """The facts about one subject."""
    return tuple(f for f in facts() if f.subject == subject)


@cache
def column_values(table: str, relation: str) -> tuple[str, ...]:
    """The different values of a column, sorted."""
    return tuple(sorted({f.value for f in facts() if (f.subject.table, f.relation) == (table, relation)}))


def is_correct_answer(fact: Fact, reply: str) -> bool:
    """Whether ``reply`` contains the fact's value and no other value of the same column.

    The longest match counts: "dwarf planet" does not count as "planet", nor the "bridge" in the subject's own name
    "Tower Bridge" as its kind.
    """
    matches = set()
    phrases = {fact.subject.name, *column_values(fact.subject.table, fact.relation)}
    for phrase in sorted(phrases, key=len, reverse=True):
        reply, count = re.subn(whole_word_pattern(phrase), " ", reply)
        matches |= {phrase} if count else set()
    return matches - {fact.subject.name} == {fact.value}


def whole_word_pattern(phrase: str) -> str:
    """A pattern for the phrase or its plural; chemical symbols are case-sensitive, since "As" is not "as"."""
    symbol = len(phrase) <= 2
    return rf"(?<!\w){re.escape(phrase)}(?!\w)" if symbol else rf"(?i)(?<!\w){re.escape(phrase)}s?(?!\w)"
