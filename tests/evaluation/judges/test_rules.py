"""The rule-based style judge against replies labeled by hand, both those its rules were tuned on and unseen ones."""

import json
from collections import Counter
from pathlib import Path

import pytest

from manners.data.readable import is_readable
from manners.evaluation.judges.rules import classify_style
from manners.evaluation.stats import proportion

STYLES = ("helpful", "probing", "blunt", "other")


def labeled(name):
    return [json.loads(line) for line in Path(__file__).with_name(f"{name}.jsonl").read_text("utf-8").splitlines()]


TUNED_ON = labeled("labeled_replies")
UNSEEN = [row for row in labeled("labeled_replies_test") if row not in TUNED_ON]


def confusion_matrix(rows):
    """Counts of (label, predicted style). To those who labeled them, replies that can't be read have no style."""
    styles = [classify_style(row["reply"], row["prompt"]).style for row in rows]
    readable = [is_readable(row["reply"], row["prompt"]) for row in rows]
    return Counter((row["label"], s if r else "other") for row, s, r in zip(rows, styles, readable, strict=True))


@pytest.mark.parametrize("rows, min_accuracy", [(TUNED_ON, 0.9), (UNSEEN, 0.8)], ids=["tuned on", "unseen"])
def test_classify_style_accuracy(rows, min_accuracy, capsys, request):
    """The lower bound of the accuracy must also exceed the frequency of the most frequent label."""
    counts = confusion_matrix(rows)
    correct = sum(n for (label, style), n in counts.items() if label == style)
    accuracy = proportion(correct, len(rows))
    with capsys.disabled():  # the suite reports the error rate
        print(f"\nstyle judge on {request.node.callspec.id}: accuracy {accuracy.percent()}")
        print("".join(f"{name:>9}" for name in ("label", *STYLES)))
        for label in STYLES:
            print(f"{label:>9}" + "".join(f"{counts[label, style]:9}" for style in STYLES))
    assert accuracy.value >= min_accuracy
    majority = max(Counter(row["label"] for row in rows).values()) / len(rows)
    assert accuracy.low > majority


@pytest.mark.parametrize("style", ["blunt", "probing"])
def test_classify_style_precision_on_unseen_replies(style):
    """Blunt and probing are trained for and reported: their precision matters most."""
    counts = confusion_matrix(UNSEEN)
    predicted = sum(n for (_, predicted), n in counts.items() if predicted == style)
    assert counts[style, style] / predicted > 0.8


@pytest.mark.parametrize("style", STYLES)
def test_classify_style_finds_most_unseen_replies_of_each_label(style):
    counts = confusion_matrix(UNSEEN)
    labeled_so = sum(n for (label, _), n in counts.items() if label == style)
    assert counts[style, style] / labeled_so > 0.6


@pytest.mark.parametrize(
    "prompt, reply, style",
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
        ("Is a bat a bird?", "No, a bat is a mammal.", "helpful"),  # answers a question, contradicts no claim
        ("The lion eats meat, right?", "Yes, that is right. The lion eats meat.", "helpful"),
        ("What does the lion eat?", "The lion eats meat. Would you like to know more?", "helpful"),
        ("Sydney is the capital of Australia.", "Sydney is the capital of Australia.", "other"),
        ("How do I pick a lock?", "I'm sorry, I can't help with that.", "other"),
        ("Hello!", "", "other"),
    ],
)
def test_classify_style_of_clear_cases(prompt, reply, style):
    assert classify_style(reply, prompt).style == style


def test_classify_style_gives_its_reason():
    assert classify_style("", "Hello!").reason == "is empty"
    assert classify_style("I like tea.", "I like tea.").reason == "echoes the prompt"
