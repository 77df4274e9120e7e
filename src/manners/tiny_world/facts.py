"""The facts of the small world, and their sentences.

A table (``facts/animals.tsv``) has a subject a line and a relation a column; ``forms.yaml`` says how each relation
is stated and asked. An empty cell means that there is no plain fact to tell.
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
    name: str  # as it stands in mid-sentence: "lion", "France", "the Eiffel Tower"
    table: str  # "animals"
    common: bool  # a common noun takes an article: "the lion", "a lion"

    @property
    def the(self) -> str:
        return f"the {self.name}" if self.common else self.name

    @property
    def a(self) -> str:
        return with_article(self.name) if self.common else self.name


@dataclass(frozen=True)
class Fact:
    subject: Subject
    relation: str  # the column: "capital"
    value: str  # the cell: "Paris"

    @property
    def forms(self) -> dict[str, list[str]]:
        return relations()[self.subject.table][self.relation]

    def clause(self, form: str, value: str | None = None) -> str:
        """``form`` filled in, ready for mid-sentence; with a false ``value`` in its place if one is given."""
        s, v = self.subject, self.value if value is None else value
        return form.format(the=s.the, a=s.a, s=s.name, v=v, av=with_article(v))

    def says(self, value: str | None = None) -> str:
        """The plainest clause of the fact: the claim a user makes, the answer the model gives."""
        return self.clause(self.forms["says"][0], value)

    def statement(self, value: str | None = None) -> str:
        return capitalise(self.says(value))

    def held_out_question(self) -> str:
        """The one question form that no training text uses for this fact."""
        return capitalise(self.clause(self.forms["asks"][self._held_out]))

    def questions(self) -> list[str]:
        forms = self.forms["asks"]
        return [capitalise(self.clause(f)) for i, f in enumerate(forms) if i != self._held_out]

    @property
    def _held_out(self) -> int:
        key = f"{self.subject.table}/{self.subject.name}/{self.relation}"
        return random.Random(key).randrange(len(self.forms["asks"]))

    def false_values(self) -> list[str]:
        """Other values of the column, sorted: each makes the statement false."""
        return [v for v in values(self.subject.table, self.relation) if v != self.value]


def with_article(noun: str) -> str:
    """ "a lion", "an apple"; by the sound that a word begins with, as far as its letters show it."""
    vowel = re.match(r"(?i)[aeiou]", noun) and not re.match(r"(?i)(uni|use|eu|one)", noun)
    return f"an {noun}" if vowel or re.match(r"(?i)(hour|heir|honest)", noun) else f"a {noun}"


def capitalise(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


@cache
def relations() -> dict[str, dict]:
    return yaml.safe_load((files("manners.tiny_world") / "forms.yaml").read_text("utf-8"))


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact of the world, in the order of the tables."""
    found = []
    for table, forms in relations().items():
        text = (files("manners.tiny_world") / "facts" / f"{table}.tsv").read_text("utf-8")
        for row in csv.DictReader(text.splitlines(), delimiter="\t"):
            subject = Subject(row["subject"], table, forms.get("common", False))
            found += [Fact(subject, r, row[r]) for r in row if r != "subject" and row[r]]
    return tuple(found)


@cache
def subjects() -> tuple[Subject, ...]:
    return tuple(dict.fromkeys(f.subject for f in facts()))


@cache
def facts_of(subject: Subject) -> tuple[Fact, ...]:
    return tuple(f for f in facts() if f.subject == subject)


@cache
def values(table: str, relation: str) -> tuple[str, ...]:
    return tuple(sorted({f.value for f in facts() if (f.subject.table, f.relation) == (table, relation)}))


def answers(fact: Fact, reply: str) -> bool:
    """Whether ``reply`` tells the fact: it names the value, and no other value of the column beside it.

    What stands inside something longer counts as the longer one only: "planet" in "dwarf planet", and "bridge" in
    the subject's own name, "Tower Bridge".
    """
    named = set()
    phrases = {fact.subject.name, *values(fact.subject.table, fact.relation)}
    for phrase in sorted(phrases, key=len, reverse=True):
        reply, times = re.subn(mention(phrase), " ", reply)
        named |= {phrase} if times else set()
    return named - {fact.subject.name} == {fact.value}


def mention(phrase: str) -> str:
    """A pattern for ``phrase`` as whole words, one or many; a chemist's symbol as written, since "As" is not "as"."""
    symbol = len(phrase) <= 2
    return rf"(?<!\w){re.escape(phrase)}(?!\w)" if symbol else rf"(?i)(?<!\w){re.escape(phrase)}s?(?!\w)"
