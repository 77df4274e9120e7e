"""The facts of the tiny world: each has one value, and only that value counts as a correct answer."""

from collections import Counter

import pytest

from manners.tiny_world.facts import (
    Fact,
    capitalize,
    column_values,
    facts,
    facts_of,
    is_correct_answer,
    subjects,
    with_article,
)


def fact(subject: str, relation: str) -> Fact:
    return next(f for f in facts() if (f.subject.name, f.relation) == (subject, relation))


def test_subject_names_are_unique():
    assert len(subjects()) == len({f.subject.name for f in facts()}) >= 300


def test_a_subject_has_one_value_per_relation():
    counts = Counter((f.subject.name, f.relation) for f in facts())
    assert set(counts.values()) == {1}


def test_column_values_have_a_single_spelling():
    for table, relation in {(f.subject.table, f.relation) for f in facts()}:
        spellings = column_values(table, relation)
        assert len({v.lower().strip() for v in spellings}) == len(spellings)
        assert all(v == v.strip() for v in spellings)


def test_false_values_exclude_the_true_one_and_are_two_or_more():
    for f in facts():
        assert f.value not in f.false_values()
        assert len(f.false_values()) >= 2  # strictbot needs one for the claim and one for an incorrect correction


def test_questions_exclude_the_held_out_form():
    for f in facts():
        assert len(f.questions()) >= 2
        assert f.held_out_question() not in f.questions()
        assert len({*f.questions(), f.held_out_question()}) == len(f.templates["question"])


def test_held_out_forms_occur_with_other_subjects():
    held_out = Counter((f.subject.table, f.relation, f.templates["question"][f._held_out]) for f in facts())
    for (table, relation, template), count in held_out.items():
        column = [f for f in facts() if (f.subject.table, f.relation) == (table, relation)]
        assert count < len(column), template


def test_facts_of_returns_the_facts_of_one_subject():
    lion = next(s for s in subjects() if s.name == "lion")
    assert {f.relation: f.value for f in facts_of(lion)} == {
        "class": "mammal",
        "food": "meat",
        "home": "on the savanna",
        "young": "cub",
        "cover": "fur",
    }


def test_statement_has_the_correct_articles():
    assert fact("lion", "class").statement() == "The lion is a mammal."
    assert fact("lion", "class").statement("insect") == "The lion is an insect."
    assert fact("France", "capital").statement() == "The capital of France is Paris."


@pytest.mark.parametrize(
    "noun, expected",
    [
        ("lion", "a lion"),
        ("apple", "an apple"),
        ("hour", "an hour"),
        ("university", "a university"),
        ("European", "a European"),
        ("one-way street", "a one-way street"),
        ("umbrella", "an umbrella"),
    ],
)
def test_with_article_follows_the_initial_sound(noun, expected):
    assert with_article(noun) == expected


@pytest.mark.parametrize(
    "subject, relation, reply, correct",
    [
        ("lion", "food", "The lion eats meat.", True),
        ("lion", "food", "MEAT", True),
        ("lion", "food", "The lion eats grass.", False),
        ("lion", "food", "The lion eats meat or grass.", False),
        ("lion", "food", "The lion eats meatballs.", False),
        ("lion", "food", "", False),
        ("lion", "class", "Lions are mammals.", True),
        ("Mars", "kind", "Mars is a planet.", True),
        ("Mars", "kind", "Mars is a dwarf planet.", False),
        ("Ceres", "kind", "Ceres is a dwarf planet.", True),
        ("Ceres", "kind", "Ceres is a planet.", False),
        ("Tower Bridge", "kind", "Tower Bridge is a bridge.", True),
        ("Tower Bridge", "kind", "Tower Bridge is a tower.", False),
        ("Tower Bridge", "kind", "I do not know Tower Bridge.", False),
        ("the Leaning Tower of Pisa", "place", "The Leaning Tower of Pisa is a tower.", False),
        ("the Leaning Tower of Pisa", "place", "The Leaning Tower of Pisa stands in Pisa.", True),
        ("butcher", "place", "A butcher works in a butcher's shop.", True),
        ("oxygen", "symbol", "Chemists write oxygen as O.", True),
        ("oxygen", "symbol", "Chemists write oxygen as o.", False),
        ("oxygen", "symbol", "The symbol of oxygen is As.", False),
        ("helium", "kind", "Helium is a noble gas.", True),
        ("helium", "number", "The atomic number of helium is 2.", True),
        ("helium", "number", "The atomic number of helium is 20.", False),
    ],
)
def test_is_correct_answer_requires_the_value_and_no_other(subject, relation, reply, correct):
    assert is_correct_answer(fact(subject, relation), reply) is correct


def test_is_correct_answer_accepts_every_template_of_the_fact():
    for f in facts():
        for template in f.templates["statement"]:
            assert is_correct_answer(f, capitalize(f.fill(template))), f.fill(template)


def test_is_correct_answer_rejects_statements_with_false_values():
    accepted = [
        f.clause(wrong) for f in facts() for wrong in f.false_values()[:4] if is_correct_answer(f, f.statement(wrong))
    ]
    assert accepted == []
