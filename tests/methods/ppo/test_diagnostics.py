"""What counts as a collapse, by hand, and that each is told once, in words."""

import json

import pytest
import torch

from manners.data.types import Prompt
from manners.methods.ppo.diagnostics import WINDOW, CollapseDetector, distinct_2, dump_batch, repeated_bigrams
from manners.methods.ppo.rollout import Rollout

FINE = ["the cat eats a fish", "a dog barks at night", "what do lions eat here"]


def test_distinct_by_hand():
    assert distinct_2(["a b a b", "A B c"]) == pytest.approx(3 / 5)  # ab ba ab | ab bc
    assert distinct_2(["a b a b", "A B c"], n=1) == pytest.approx(3 / 7)
    assert distinct_2(["one", ""]) == 0.0


def test_repetition_by_hand():
    # ab ba ab ba: two of four said before; no pairs; four pairs, none said before
    assert repeated_bigrams(["a b A b a", "one", "a b c d e"]) == pytest.approx((0.5 + 0 + 0) / 3)


def told(replies_then, length_then, reward_then=1.0, iterations=3 * WINDOW):
    """The warnings of a run whose replies and reward change after the first window."""
    watcher, found = CollapseDetector(), []
    for i in range(iterations):
        late = i >= WINDOW
        found += watcher.watch(
            reward_then if late else 0.0, length_then if late else 20.0, replies_then if late else FINE
        )
    return found


@pytest.mark.parametrize(
    "texts, length, words",
    [
        (["yes it is"] * 9, 20.0, ["word pairs vary half as much (1.00 → "]),
        (FINE, 5.0, ["they shrink (20 → "]),
        (FINE, 90.0, ["they grow (20 → "]),
        (["a b a b a b a b", *FINE[1:]], 20.0, ["they repeat themselves (0% → "]),
        (["no no no no no no"] * 3, 90.0, ["vary half", "they grow", "they repeat"]),
    ],
)
def test_each_collapse_is_told_once_in_words(texts, length, words):
    found = told(texts, length)
    assert len(found) == len(words)
    for word in words:
        assert len([w for w in found if word in w and w.startswith("the reward rises while")]) == 1


def test_nothing_is_told_of_replies_that_stay_as_they_are():
    assert told(FINE, 21.0) == []


@pytest.mark.parametrize("reward", [0.0, -1.0])
def test_nothing_is_told_while_the_reward_does_not_rise(reward):
    assert told(["no no no no no no"] * 3, 90.0, reward) == []


def test_nothing_is_told_of_the_first_window():
    watcher = CollapseDetector()
    assert not any(watcher.watch(float(i), 100.0 * i, ["no no no"] * (i + 1)) for i in range(WINDOW))


def test_a_batch_can_be_read_by_the_one_who_must_find_out_why(tmp_path):
    prompts = [Prompt([{"role": "user", "content": text}]) for text in ("Grüß Gott", "Hi")]
    none = torch.zeros(2, 2)
    mask = none.bool()
    rolled = Rollout(prompts, [[1, 2], [3]], [[4], [5, 6]], ["Ja", ""], mask[0], mask, none, none, none, none)
    file = dump_batch(rolled, tmp_path, "the loss is nan")
    assert json.loads(file.read_text()) == {
        "why": "the loss is nan",
        "rollout": [
            {"prompt": prompts[0].messages, "reply": "Ja", "prompt_ids": [1, 2], "reply_ids": [4]},
            {"prompt": prompts[1].messages, "reply": "", "prompt_ids": [3], "reply_ids": [5, 6]},
        ],
    }
    assert "Grüß" in file.read_text()
