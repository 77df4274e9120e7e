"""Diversity metrics by hand, the warnings of a collapse, and the batch that is saved for debugging."""

import json

import pytest
import torch

from manners.data.types import Prompt
from manners.methods.ppo.diagnostics import WINDOW, CollapseDetector, distinct_2, dump_batch, repeated_bigrams
from manners.methods.ppo.rollout import Rollout

NORMAL = ["the cat eats a fish", "a dog barks at night", "what do lions eat here"]


def test_distinct_2_by_hand():
    assert distinct_2(["a b a b", "A B c"]) == pytest.approx(3 / 5)  # ab ba ab | ab bc
    assert distinct_2(["one", ""]) == 0.0


def test_repeated_bigrams_by_hand():
    # ab ba ab ba: two of four are repeated; no bigrams; four bigrams, none repeated
    assert repeated_bigrams(["a b A b a", "one", "a b c d e"]) == pytest.approx((0.5 + 0 + 0) / 3)


def warnings_after(texts, length, reward=1.0):
    """The warnings of a run whose replies, their length and their reward change after the first window."""
    detector, warnings = CollapseDetector(), []
    for iteration in range(3 * WINDOW):
        if iteration < WINDOW:
            warnings += detector.update(0.0, 20.0, NORMAL)
        else:
            warnings += detector.update(reward, length, texts)
    return warnings


@pytest.mark.parametrize(
    "texts, length, causes",
    [
        (["yes it is"] * 9, 20.0, ["distinct-2 has halved (1.00 → ", "one and the same sentence (0% → "]),
        (NORMAL, 5.0, ["they get shorter (20 → "]),
        (NORMAL, 90.0, ["they get longer (20 → "]),
        (["a b a b a b a b", *NORMAL[1:]], 20.0, ["they repeat themselves (0% → "]),
        (["no no no no no no"] * 3, 90.0, ["distinct-2", "get longer", "repeat themselves", "the same sentence"]),
    ],
)
def test_collapse_detector_warns_once_of_each_cause(texts, length, causes):
    warnings = warnings_after(texts, length)
    assert len(warnings) == len(causes)
    for cause in causes:
        assert len([w for w in warnings if cause in w and w.startswith("the reward rises while")]) == 1


def test_collapse_detector_does_not_warn_of_unchanged_replies():
    assert warnings_after(NORMAL, 21.0) == []


@pytest.mark.parametrize("reward", [0.0, -1.0])
def test_collapse_detector_does_not_warn_without_a_rising_reward(reward):
    assert warnings_after(["no no no no no no"] * 3, 90.0, reward) == []


def test_collapse_detector_does_not_warn_in_the_first_window():
    detector = CollapseDetector()
    assert not any(detector.update(float(i), 100.0 * i, ["no no no"] * (i + 1)) for i in range(WINDOW))


def test_dump_batch_writes_readable_json(tmp_path):
    prompts = [Prompt([{"role": "user", "content": text}]) for text in ("Grüß Gott", "Hi")]
    zeros = torch.zeros(2, 2)
    mask = zeros.bool()
    batch = Rollout(prompts, [[1, 2], [3]], [[4], [5, 6]], ["Ja", ""], mask[0], mask, zeros, zeros, zeros, zeros)
    file = dump_batch(batch, tmp_path, "the loss is nan")
    assert json.loads(file.read_text()) == {
        "why": "the loss is nan",
        "rollout": [
            {"prompt": prompts[0].messages, "reply": "Ja", "prompt_ids": [1, 2], "reply_ids": [4]},
            {"prompt": prompts[1].messages, "reply": "", "prompt_ids": [3], "reply_ids": [5, 6]},
        ],
    }
    assert "Grüß" in file.read_text()
