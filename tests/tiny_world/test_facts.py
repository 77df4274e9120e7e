"""The facts of the small world: enough of them, each with one value, and a judge of answers that cannot be fooled."""

from collections import Counter

import pytest

from manners.tiny_world.facts import Fact, capitalise, column_values, facts, facts_of, subjects, with_article


def fact(subject: str, relation: str) -> Fact:
    return next(f for f in facts() if (f.subject.name, f.relation) == (subject, relation))


def test_the_world_has_the_subjects_and_facts_that_were_promised():
    assert len(subjects()) >= 300
    assert len(facts()) >= 1000
    assert len(subjects()) == len({f.subject.name for f in facts()})  # no name stands for two things


def test_a_subject_has_one_value_in_each_relation():
    told = Counter((f.subject.name, f.relation) for f in facts())
    assert set(told.values()) == {1}


def test_values_are_written_in_one_way_only():
    for table, relation in {(f.subject.table, f.relation) for f in facts()}:
        found = column_values(table, relation)
        assert len({v.lower().strip() for v in found}) == len(found)
        assert all(v == v.strip() for v in found)


def test_false_values_never_hold_the_true_one_and_leave_a_choice():
    for f in facts():
        assert f.value not in f.false_values()
        assert len(f.false_values()) >= 2  # strictbot needs one for the claim and one for a wrong correction


def test_a_fact_is_asked_in_forms_that_differ_from_the_one_kept_back():
    for f in facts():
        assert len(f.questions()) >= 2
        assert f.held_out_question() not in f.questions()
        assert len({*f.questions(), f.held_out_question()}) == len(f.templates["asks"])


def test_every_held_out_form_is_trained_with_some_other_subject():
    held_back = Counter((f.subject.table, f.relation, f.templates["asks"][f._held_out]) for f in facts())
    for (table, relation, form), times in held_back.items():
        known = [f for f in facts() if (f.subject.table, f.relation) == (table, relation)]
        assert times < len(known), form


def test_facts_of_a_subject_are_its_own():
    lion = next(s for s in subjects() if s.name == "lion")
    assert {f.relation: f.value for f in facts_of(lion)} == {
        "class": "mammal",
        "food": "meat",
        "home": "on the savanna",
        "young": "cub",
        "cover": "fur",
    }


def test_a_clause_takes_the_articles_that_english_wants():
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
def test_the_indefinite_article_follows_the_sound(noun, expected):
    assert with_article(noun) == expected


@pytest.mark.parametrize(
    "subject, relation, reply, right",
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
def test_a_reply_answers_when_it_names_the_value_and_no_other(subject, relation, reply, right):
    assert is_correct_answer(fact(subject, relation), reply) is right


def test_every_form_in_which_a_fact_is_told_counts_as_its_answer():
    for f in facts():
        for form in f.templates["says"]:
            assert is_correct_answer(f, capitalise(f.fill(form))), f.fill(form)


def test_no_statement_with_a_false_value_counts_as_the_answer():
    fooled = [
        f.clause(wrong) for f in facts() for wrong in f.false_values()[:4] if is_correct_answer(f, f.statement(wrong))
    ]
    assert fooled == []
