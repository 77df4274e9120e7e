"""The sum of rewards by hand, and what happens to a function that is not there or not in order."""

import math
import sys
from types import ModuleType

import pytest

from manners.data.types import Prompt
from manners.errors import MannersError
from manners.rewards import functions
from manners.rewards.combine import RewardComponent, build_components, combine_rewards

PROMPTS = [
    Prompt([{"role": "user", "content": "Hi"}], "Hello.", {"category": "greeting", "number": 3}),
    Prompt([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}], None, {"number": 5}),
]
REPLIES = ["Hello there", "Because I say so"]
IDS = [[4, 5, 1], [6, 7, 8, 9]]
ENDED = [True, False]


@pytest.fixture
def theirs(monkeypatch):
    """A module of the user's own."""
    module = ModuleType("their_rewards")
    module.nothing = 3
    monkeypatch.setitem(sys.modules, "their_rewards", module)
    return module


def paid(**parts):
    return combine_rewards(parts, PROMPTS, REPLIES, IDS, ENDED)


def test_the_sum_is_weighted_and_each_part_reported():
    sums, parts = paid(
        first=RewardComponent(2.0, lambda prompts, completions, **_: [1.0, -3.0]),
        second=RewardComponent(-0.5, lambda prompts, completions, **_: (10, 4)),
    )
    assert sums == [2 * 1 - 0.5 * 10, 2 * -3 - 0.5 * 4]
    assert parts == {"first": [1.0, -3.0], "second": [10.0, 4.0]}


def test_functions_are_called_as_trl_calls_them():
    calls = []

    def spy(**given):
        calls.append(given)
        return [0.0, 0.0]

    paid(spy=RewardComponent(1.0, spy))
    assert calls == [
        {
            "prompts": [PROMPTS[0].messages, PROMPTS[1].messages],
            "completions": [
                [{"role": "assistant", "content": "Hello there"}],
                [{"role": "assistant", "content": "Because I say so"}],
            ],
            "completion_ids": IDS,
            "has_eos": ENDED,
            "category": ["greeting", None],
            "number": [3, 5],
        }
    ]


def test_a_function_from_trls_manual_works_as_it_stands():
    """It takes what it needs, in an order of its own."""

    def reward_len(completions, **kwargs):
        return [float(len(completion[0]["content"])) for completion in completions]

    def by_ids(completion_ids, number, **kwargs):
        return [len(ids) * n for ids, n in zip(completion_ids, number, strict=True)]

    sums, parts = paid(length=RewardComponent(1.0, reward_len), ids=RewardComponent(1.0, by_ids))
    assert parts == {"length": [11.0, 16.0], "ids": [9.0, 20.0]}
    assert sums == [20.0, 36.0]


def test_functions_are_found_by_their_dotted_name_and_given_their_options(theirs):
    theirs.count = lambda completions, word, **_: [c[0]["content"].split().count(word) for c in completions]
    parts = build_components({"mine": {"weight": 3, "_target_": "their_rewards.count", "word": "say"}, "model": {}},
                  lambda **_: [7.0, 8.0])  # fmt: skip
    sums, found = paid(**parts)
    assert found == {"mine": [0.0, 1.0], "model": [7.0, 8.0]}
    assert sums == [7.0, 11.0]


def test_the_model_gives_way_to_a_function_of_its_name(theirs):
    theirs.one = lambda **_: [1.0, 1.0]
    assert paid(**build_components({"model": {"_target_": "their_rewards.one"}}, lambda **_: [9.0, 9.0]))[0] == [
        1.0,
        1.0,
    ]


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"polite": {"_target_": "their_rewards.missing"}}, ["rewards.polite", "their_rewards.missing", "found"]),
        ({"polite": {"_target_": "no_such_package.f"}}, ["rewards.polite", "no_such_package"]),
        ({"polite": {"_target_": "their rewards"}}, ["rewards.polite", "their rewards"]),
        ({"polite": {"_target_": "their_rewards.nothing"}}, ["their_rewards.nothing", "cannot be found"]),
        ({"model": {"weight": 1.0}}, ["rewards.model", "reward_from=none", "_target_"]),
        ({"model": {"weight": math.nan}}, ["rewards.model.weight", "nan"]),
        ({}, ["nothing to reward"]),
    ],
)
def test_a_part_that_cannot_be_built_is_told_in_words(theirs, spec, words):
    with pytest.raises(MannersError) as error:
        build_components(spec, None)
    assert all(word in str(error.value) for word in words)


def test_a_wrong_number_of_scores_is_told_in_words():
    with pytest.raises(MannersError, match=r"method\.rewards\.mine gave 1 scores for 2 replies"):
        paid(mine=RewardComponent(1.0, lambda **_: [1.0]))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_told_with_its_reply(broken):
    with pytest.raises(FloatingPointError, match=rf"method\.rewards\.mine gave {broken} .*'Because I say so'"):
        paid(mine=RewardComponent(1.0, lambda **_: [1.0, broken]))


# --- The rewards that come along ---


def replies(*texts):
    return {"prompts": [[]] * len(texts), "completions": [[{"role": "assistant", "content": t}] for t in texts]}


def test_brevity_by_hand():
    texts = ("", "a b c d", "a b c d e f", "a b c d e f g h")
    assert functions.brevity(**replies(*texts), words=4, has_eos=[True] * 4) == [0, 0, -0.5, -1.0]


def test_variety_by_hand():
    texts = ("", "word", "a b c d", "a b A b a b", "no no no no no")
    assert functions.distinct_bigrams(**replies(*texts)) == pytest.approx([1, 1, 1, 2 / 5, 1 / 4])
