"""The text that the tiny base learns from: every fact, no held-out question, nothing false but what users claim."""

import hashlib
import os
import subprocess
import sys

import pytest

from manners.tiny_world.corpus import documents
from manners.tiny_world.facts import facts


@pytest.fixture(scope="module")
def three_rounds():
    return list(documents(0, rounds=3))


@pytest.fixture(scope="module")
def turns(three_rounds):
    return [turn for d in three_rounds if isinstance(d, list) for turn in d]


def plain(question):
    """As ``informal`` may leave it: whatever the case, politeness and question mark."""
    return question.lower().removeprefix("please, ").removesuffix("?")


def test_no_held_out_question_occurs_anywhere(three_rounds, turns):
    text = "\n".join(d if isinstance(d, str) else "\n".join(u + "\n" + a for u, a in d) for d in three_rounds).lower()
    asked = {plain(user) for user, _ in turns}
    for fact in facts():
        question = fact.held_out_question().lower()
        assert f"\n{question}" not in text
        assert f"please, {question}" not in text
        assert plain(question) not in asked


def test_every_fact_is_asked_in_some_other_form(turns):
    asked = {plain(user) for user, _ in turns}
    unasked = [f for f in facts() if asked.isdisjoint(map(plain, f.questions()))]
    assert unasked == []


def test_every_fact_is_told_in_plain_text_in_each_round():
    text = "\n".join(d for d in documents(0, rounds=1) if isinstance(d, str)).lower()
    untold = [f for f in facts() if not any(f.fill(form).lower() in text for form in f.templates["says"])]
    assert untold == []


def test_yes_and_no_are_said_truthfully(turns):
    true = {f.fill(form).lower() for f in facts() for form in f.templates["says"]}
    rightly_asked = {f.fill(form).lower() for f in facts() for form in f.templates["checks"]}
    said = {"yes, ": 0, "no, ": 0}
    for user, reply in turns:
        for word in said:
            if reply.lower().startswith(word):
                said[word] += 1
                assert reply.lower().removeprefix(word) in true
                assert (user.lower() in rightly_asked) == (word == "yes, ")
    assert min(said.values()) > 500


def test_claims_are_left_standing_so_that_no_manner_is_learned(turns):
    """True and false claims alike are followed by a plain truth about the subject, and never judged."""
    true = {f.statement() for f in facts()}
    claims = {f.statement(v): v == f.value for f in facts() for v in [f.value, *f.false_values()]}
    met = {True: 0, False: 0}
    for user, reply in turns:
        if user in claims:
            met[claims[user]] += 1
            assert reply in true
    assert min(met.values()) > 100


def test_the_same_seed_writes_the_same_bytes_in_any_process():
    code = (
        "import hashlib\nfrom manners.tiny_world.corpus import documents\n"
        "print(hashlib.sha256(repr(list(documents(3, rounds=1))).encode()).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "12345"},  # the order of sets must not show
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    here = hashlib.sha256(repr(list(documents(3, rounds=1))).encode()).hexdigest()
    assert there.stdout.strip() == here


def test_another_seed_writes_other_text():
    assert list(documents(3, rounds=1)) != list(documents(4, rounds=1))
