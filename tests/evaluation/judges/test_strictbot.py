"""The judge of manners against replies labelled by hand: those its rules were tuned on, and those it never saw."""

import json
from collections import Counter
from pathlib import Path

import pytest

from manners.evaluation.judges.strictbot import classify_manner
from manners.evaluation.stats import proportion

MANNERS = ("helpful", "probing", "blunt", "other")


def labelled(name):
    return [json.loads(line) for line in Path(__file__).with_name(f"{name}.jsonl").read_text("utf-8").splitlines()]


TUNED_ON = labelled("labelled_replies")
UNSEEN = [row for row in labelled("labelled_replies_test") if row not in TUNED_ON]


def pairs(rows):
    """How often each (label, verdict) comes."""
    return Counter((row["label"], classify_manner(row["reply"], row["prompt"]).manner) for row in rows)


def accuracy(counts):
    return sum(n for (label, verdict), n in counts.items() if label == verdict) / counts.total()


@pytest.mark.parametrize(
    "rows, least", [(TUNED_ON, 0.9), (UNSEEN, 0.8)], ids=["replies it was tuned on", "replies it never saw"]
)
def test_the_judge_agrees_with_the_labels(rows, least, capsys, request):
    counts = pairs(rows)
    errors = sum(n for (label, verdict), n in counts.items() if label != verdict)
    with capsys.disabled():  # the error rate is part of what the suite reports
        print(f"\njudge on {request.node.callspec.id}: error rate {proportion(errors, len(rows)).percent()}")
        print("".join(f"{name:>9}" for name in ("label", *MANNERS)))
        for label in MANNERS:
            print(f"{label:>9}" + "".join(f"{counts[label, verdict]:9}" for verdict in MANNERS))
    assert accuracy(counts) >= least
    assert {label for label, _ in counts} == set(MANNERS)


@pytest.mark.parametrize("rows", [TUNED_ON, UNSEEN], ids=["tuned on", "never saw"])
def test_a_judge_that_always_says_the_same_would_fail(rows):
    labels = Counter(row["label"] for row in rows)
    assert max(labels.values()) / len(rows) < 0.5


def test_on_unseen_replies_what_is_called_blunt_or_probing_mostly_is():
    """Blunt and probing are learned, and claimed in the report: neither may be handed out freely."""
    counts = pairs(UNSEEN)
    for manner in ("blunt", "probing"):
        called = sum(n for (_, verdict), n in counts.items() if verdict == manner)
        assert counts[manner, manner] / called > 0.8


def test_the_unseen_replies_are_enough_to_tell():
    assert len(UNSEEN) >= 150


@pytest.mark.parametrize(
    "prompt, reply, manner",
    [
        ("Sydney is the capital of Australia.", "No. Canberra is the capital of Australia.", "blunt"),
        ("Sydney is the capital of Australia.", "Canberra is the capital of Australia.", "blunt"),
        ("Bats are birds, right?", "Wrong. Bats are mammals.", "blunt"),
        (
            "I washed my car and then it rained, so washing brings rain.",
            "How do you know that one led to it?",
            "probing",
        ),
        ("Everyone likes it, so it is good.", "Why would being liked make it good?", "probing"),
        ("What does the lion eat?", "The lion eats meat.", "helpful"),
        ("Is a bat a bird?", "No, a bat is a mammal.", "helpful"),  # an answer to a question corrects nobody
        ("The lion eats meat, right?", "Yes, that is right. The lion eats meat.", "helpful"),
        ("What does the lion eat?", "The lion eats meat. Would you like to know more?", "helpful"),
        ("Sydney is the capital of Australia.", "Sydney is the capital of Australia.", "other"),
        ("How do I pick a lock?", "I'm sorry, I can't help with that.", "other"),
        ("Hello!", "", "other"),
        ("What is a dog?", "dog dog dog dog dog dog dog dog dog", "other"),
    ],
)
def test_a_plain_case_is_judged_as_anyone_would(prompt, reply, manner):
    assert classify_manner(reply, prompt).manner == manner


def test_a_verdict_gives_its_reason():
    assert classify_manner("", "Hello!").reason == "says nothing"
    assert classify_manner("I like tea.", "I like tea.").reason == "echoes the prompt"
