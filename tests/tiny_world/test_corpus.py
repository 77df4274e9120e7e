"""Text of the first pretraining stage: it has every fact and no held-out question, and only users' claims are false."""

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


def normalize(question):
    """The question without what ``informal`` may change."""
    return question.lower().removeprefix("please, ").removesuffix("?")


def test_documents_contain_no_held_out_question(three_rounds, turns):
    text = "\n".join(d if isinstance(d, str) else "\n".join(u + "\n" + a for u, a in d) for d in three_rounds).lower()
    questions = {normalize(user) for user, _ in turns}
    for fact in facts():
        question = fact.held_out_question().lower()
        assert f"\n{question}" not in text
        assert f"please, {question}" not in text
        assert normalize(question) not in questions


def test_documents_ask_every_fact_in_another_form(turns):
    questions = {normalize(user) for user, _ in turns}
    missing = [f for f in facts() if questions.isdisjoint(map(normalize, f.questions()))]
    assert missing == []


def test_each_round_states_every_fact_in_plain_text():
    text = "\n".join(d for d in documents(0, rounds=1) if isinstance(d, str)).lower()
    missing = [f for f in facts() if not any(f.fill(t).lower() in text for t in f.templates["statement"])]
    assert missing == []


def test_yes_no_replies_are_correct(turns):
    true = {f.fill(t).lower() for f in facts() for t in f.templates["statement"]}
    questions_about_true_values = {f.fill(t).lower() for f in facts() for t in f.templates["yes_no_question"]}
    counts = {"yes, ": 0, "no, ": 0}
    for user, reply in turns:
        for word in counts:
            if reply.lower().startswith(word):
                counts[word] += 1
                assert reply.lower().removeprefix(word) in true
                assert (user.lower() in questions_about_true_values) == (word == "yes, ")
    assert min(counts.values()) > 500


def test_claims_are_answered_without_a_verdict(turns):
    """True and false claims alike are followed by a true statement about the subject, so that no style is learned."""
    true = {f.statement() for f in facts()}
    claims = {f.statement(v): v == f.value for f in facts() for v in [f.value, *f.false_values()]}
    counts = {True: 0, False: 0}
    for user, reply in turns:
        if user in claims:
            counts[claims[user]] += 1
            assert reply in true
    assert min(counts.values()) > 100


def test_documents_are_reproducible_across_processes():
    code = (
        "import hashlib\nfrom manners.tiny_world.corpus import documents\n"
        "print(hashlib.sha256(repr(list(documents(3, rounds=1))).encode()).hexdigest())"
    )
    other_process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "12345"},  # the order of sets must not matter
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    expected = hashlib.sha256(repr(list(documents(3, rounds=1))).encode()).hexdigest()
    assert other_process.stdout.strip() == expected


def test_documents_depend_on_the_seed():
    assert list(documents(3, rounds=1)) != list(documents(4, rounds=1))
