"""Reward components: how they are built, called and summed, and what is reported of a broken one."""

import math
import sys
from types import ModuleType
from unittest.mock import ANY

import pytest

from manners.data.types import Prompt
from manners.errors import MannersError
from manners.rewards import functions
from manners.rewards.combine import END, RewardComponent, build_components, combine_rewards

PROMPTS = [
    Prompt([{"role": "user", "content": "Hi"}], "Hello.", {"category": "greeting", "number": 3}),
    Prompt([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}], None, {"number": 5}),
]
REPLIES = ["Hello there", "Because I say so"]
COMPLETION_IDS = [[4, 5, 1], [6, 7, 8, 9]]
HAS_EOS = [True, False]


@pytest.fixture
def user_module(monkeypatch):
    """A module of the user's, ``my_rewards``."""
    module = ModuleType("my_rewards")
    module.number = 3
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    return module


def combine(**components):
    return combine_rewards(components, PROMPTS, REPLIES, COMPLETION_IDS, HAS_EOS)


def test_combine_rewards_sums_by_weight_and_keeps_components():
    sums, scores = combine(
        first=RewardComponent(2.0, lambda prompts, completions, **_: [1.0, -3.0]),
        second=RewardComponent(-0.5, lambda prompts, completions, **_: (10, 4)),
    )
    assert sums == [2 * 1 - 0.5 * 10, 2 * -3 - 0.5 * 4]
    assert scores == {"first": [1.0, -3.0], "second": [10.0, 4.0]}


def test_combine_rewards_passes_trls_arguments_and_the_columns():
    calls = []

    def spy(**arguments):
        calls.append(arguments)
        return [0.0, 0.0]

    combine(spy=RewardComponent(1.0, spy))
    assert calls == [
        {
            "prompts": [PROMPTS[0].messages, PROMPTS[1].messages],
            "completions": [
                [{"role": "assistant", "content": "Hello there"}],
                [{"role": "assistant", "content": "Because I say so"}],
            ],
            "completion_ids": COMPLETION_IDS,
            "has_eos": HAS_EOS,
            "category": ["greeting", None],
            "number": [3, 5],
            "trainer_state": END,
            "log_metric": ANY,
            "log_extra": ANY,
        }
    ]


def test_combine_rewards_accepts_functions_written_for_trl():
    """They take the arguments that they need, by name."""

    def reward_len(completions, **kwargs):
        return [float(len(completion[0]["content"])) for completion in completions]

    def by_ids(completion_ids, number, **kwargs):
        return [len(ids) * n for ids, n in zip(completion_ids, number, strict=True)]

    sums, scores = combine(length=RewardComponent(1.0, reward_len), ids=RewardComponent(1.0, by_ids))
    assert scores == {"length": [11.0, 16.0], "ids": [9.0, 20.0]}
    assert sums == [20.0, 36.0]


def test_build_components_finds_functions_and_passes_options(user_module):
    user_module.count = lambda completions, word, **_: [c[0]["content"].split().count(word) for c in completions]
    config = {"mine": {"weight": 3, "_target_": "my_rewards.count", "word": "say"}, "model": {}}
    sums, scores = combine(**build_components(config, lambda **_: [7.0, 8.0]))
    assert scores == {"mine": [0.0, 1.0], "model": [7.0, 8.0]}
    assert sums == [7.0, 11.0]


def test_build_components_prefers_target_over_the_reward_model(user_module):
    user_module.ones = lambda **_: [1.0, 1.0]
    components = build_components({"model": {"_target_": "my_rewards.ones"}}, lambda **_: [9.0, 9.0])
    assert combine(**components)[0] == [1.0, 1.0]


@pytest.mark.parametrize(
    "config, parts",
    [
        ({"polite": {"_target_": "my_rewards.missing"}}, ["rewards.polite", "my_rewards.missing", "found"]),
        ({"polite": {"_target_": "no_such_package.f"}}, ["rewards.polite", "no_such_package"]),
        ({"polite": {"_target_": "my rewards"}}, ["rewards.polite", "my rewards"]),
        ({"polite": {"_target_": "my_rewards.number"}}, ["rewards.polite", "my_rewards.number"]),
        ({"model": {"weight": 1.0}}, ["rewards.model", "reward_from=none", "_target_"]),
        ({"model": {"weight": math.nan}}, ["rewards.model.weight", "nan"]),
        ({}, ["nothing to reward"]),
    ],
)
def test_build_components_refuses_what_cannot_be_built(user_module, config, parts):
    with pytest.raises(MannersError) as error:
        build_components(config, None)
    assert all(part in str(error.value) for part in parts)


def test_combine_rewards_refuses_a_wrong_number_of_scores():
    with pytest.raises(MannersError, match=r"method\.rewards\.mine gave 1 scores for 2 replies"):
        combine(mine=RewardComponent(1.0, lambda **_: [1.0]))


def test_combine_rewards_names_the_reply_of_an_infinite_score():
    with pytest.raises(FloatingPointError, match=r"method\.rewards\.mine gave inf .*'Because I say so'"):
        combine(mine=RewardComponent(1.0, lambda **_: [1.0, math.inf]))


# --- The packaged reward functions ---


def arguments(*replies):
    return {
        "prompts": [[]] * len(replies),
        "completions": [[{"role": "assistant", "content": r}] for r in replies],
        "has_eos": [True] * len(replies),
    }


def test_brevity_by_hand():
    replies = ("", "a b c d", "a b c d e f", "a b c d e f g h")
    assert functions.brevity(**arguments(*replies), words=4) == [0, 0, -0.5, -1.0]


def test_distinct_bigrams_by_hand():
    replies = ("", "word", "a b c d", "a b A b a b", "no no no no no")
    assert functions.distinct_bigrams(**arguments(*replies)) == pytest.approx([1, 1, 1, 2 / 5, 1 / 4])
