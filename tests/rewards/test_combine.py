"""Reward components: how they are built, called and summed, and what is reported of a broken one."""

import asyncio
import json
import math
import os
import sys
from fractions import Fraction
from types import ModuleType
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainerState

from manners.data.types import Prompt
from manners.errors import MannersError
from manners.rewards import functions
from manners.rewards.combine import (
    RewardComponent,
    RewardLog,
    build_components,
    combine_rewards,
    end_of_training,
    named_columns,
    try_components,
)

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
            "trainer_state": end_of_training(),
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


def test_columns_that_a_function_names_are_those_it_reads(user_module):
    user_module.count = lambda completions, target, word, **_: [0.0] * len(completions)
    config = {"mine": {"weight": 3, "_target_": "my_rewards.count", "word": "say"}, "model": {}}
    assert named_columns(config) == {"completions", "target", "_"} and named_columns({"model": {}}) == set()


def test_build_components_prefers_target_over_the_reward_model(user_module):
    user_module.ones = lambda **_: [1.0, 1.0]
    components = build_components({"model": {"_target_": "my_rewards.ones"}}, lambda **_: [9.0, 9.0])
    assert combine(**components)[0] == [1.0, 1.0]


@pytest.mark.parametrize(
    "config, parts",
    [
        ({"polite": {"_target_": "my_rewards.missing"}}, ["rewards.polite", "my_rewards.missing", "found"]),
        ({"polite": {"_target_": "manners.rewards.functions.lenght"}}, ["found", "Did you mean 'length'?"]),
        ({"polite": {"_target_": "no_such_package.f"}}, ["rewards.polite", "no_such_package"]),
        ({"polite": {"_target_": "my rewards"}}, ["rewards.polite", "my rewards"]),
        ({"polite": {"_target_": "my_rewards.number"}}, ["rewards.polite", "my_rewards.number"]),
        ({"model": {"weight": 1.0}}, ["rewards.model", "reward_from=none", "_target_"]),
        ({}, ["nothing to reward"]),
    ],
)
def test_build_components_refuses_what_cannot_be_built(user_module, config, parts):
    with pytest.raises(MannersError) as error:
        build_components(config, None)
    assert all(part in str(error.value) for part in parts)


def test_build_components_makes_an_instance_of_a_class(user_module):
    class Count:
        def __init__(self, word):
            self.word = word

        def __call__(self, completions, **_):
            return [c[0]["content"].count(self.word) for c in completions]

    user_module.Count = Count
    components = build_components({"mine": {"_target_": "my_rewards.Count", "word": "e"}}, None)
    assert combine(**components)[0] == [3.0, 2.0]


def test_option_that_a_function_does_not_name_is_refused(user_module):
    user_module.short = lambda completions, limit=3, **kwargs: [0.0] * len(completions)
    config = {"x": {"_target_": "my_rewards.short", "wieght": 3}}
    with pytest.raises(MannersError, match=r"x: my_rewards.short names no option 'wieght'. Did you mean 'wei"):
        build_components(config, None)
    assert build_components({"x": {"_target_": "my_rewards.short", "limit": 5}}, None)["x"].weight == 1.0


@pytest.mark.parametrize("option, missing", [({}, "word"), ({"word": "e", "limit": 1}, None)])
def test_parameter_that_nothing_sets_is_named(user_module, option, missing):
    """Neither an option nor a field of the rows, of which the nearest is named."""
    user_module.count = lambda completions, word, limit=3, **_: [0.0] * len(completions)
    components = build_components({"x": {"_target_": "my_rewards.count"} | option}, None)
    prompts = [Prompt([{"role": "user", "content": "Hi"}], None, {"words": 3})]
    if missing:
        with pytest.raises(MannersError, match=r"x needs 'word': set \+method\.rewards\.x\.word=VALUE.*'words'"):
            try_components(components, prompts)
    else:
        try_components(components, prompts)


def test_option_counts_before_a_field_of_the_same_name(user_module):
    user_module.limited = lambda completions, number, **_: [number] * len(completions)
    components = build_components({"x": {"_target_": "my_rewards.limited", "number": 7}}, None)
    assert combine(**components)[0] == [7, 7]


def test_function_is_told_device_and_name_if_it_asks(user_module):
    user_module.told = lambda completions, device, component, **_: [len(device), len(component)]
    config = {"mine": {"_target_": "my_rewards.told"}, "other": {"_target_": "my_rewards.told", "device": "x"}}
    scores = combine(**build_components(config, None, "cuda"))[1]
    assert scores == {"mine": [4, 4], "other": [1, 5]}


def test_functions_do_not_move_the_run_to_another_folder(user_module, tmp_path):
    start = os.getcwd()

    def moves(completions, **_):
        os.chdir(tmp_path)
        return [0.0] * len(completions)

    combine(moves=RewardComponent(1.0, moves))
    assert os.getcwd() == start


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit])
def test_async_function_that_gives_up_is_a_failure(error):
    async def gives_up(**_):
        raise error("no more")

    with pytest.raises(MannersError, match=f"method.rewards.x failed: {error.__name__}: no more"):
        combine(x=RewardComponent(1.0, gives_up))


def test_function_that_exits_is_a_failure():
    def leave(**_):
        raise SystemExit(0)

    with pytest.raises(MannersError, match="mine failed: SystemExit"):
        combine(mine=RewardComponent(1.0, leave))


def test_function_may_change_its_prompts():
    def shout(prompts, completions, **_):
        for prompt in prompts:
            prompt[-1]["content"] = prompt[-1]["content"].upper()
            prompt.clear()
        return [0.0] * len(completions)

    before = [[dict(message) for message in p.messages] for p in PROMPTS]
    combine(mine=RewardComponent(1.0, shout))
    assert [p.messages for p in PROMPTS] == before


def test_columns_are_those_of_all_rows():
    """A field that the first row lacks is not lost."""
    prompts = [PROMPTS[1], PROMPTS[0]]
    component = RewardComponent(1.0, lambda category, **_: [float(c == "greeting") for c in category])
    assert combine_rewards({"mine": component}, prompts, REPLIES, COMPLETION_IDS, HAS_EOS)[0] == [0.0, 1.0]


# --- What functions return ---


def test_none_and_nan_abstain_and_the_others_are_summed():
    sums, scores = combine(
        first=RewardComponent(2.0, lambda **_: [None, 3.0]), second=RewardComponent(1.0, lambda **_: [math.nan, None])
    )
    assert math.isnan(sums[0]) and sums[1] == 6.0
    assert [math.isnan(v) for values in scores.values() for v in values] == [True, False, True, True]


@pytest.mark.parametrize(
    "values",
    [
        (0.5, 2),
        np.array([0.5, 2.0], np.float32),
        torch.tensor([0.5, 2.0]),
        [torch.tensor(0.5), np.int64(2)],
        (v for v in (0.5, 2.0)),
        {"a": 0.5, "b": 2.0}.values(),
        [Fraction(1, 2), 2.0],
    ],
)
def test_numbers_of_any_library_are_scores(values):
    assert combine(mine=RewardComponent(1.0, lambda **_: values))[0] == [0.5, 2.0]


@pytest.mark.parametrize(
    "values",
    [None, 1.0, "12", ["1", "2"], {0: 1.0, 1: 2.0}, {1.0, 2.0}, [[1.0], [2.0]], torch.ones(2, 1), [1j, 2j], object()],
)
def test_what_is_no_list_of_numbers_is_refused(values):
    message = r"^method\.rewards\.mine returned .*: it must return a list with one number for each completion"
    with pytest.raises(MannersError, match=message):
        combine(mine=RewardComponent(1.0, lambda **_: values))


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
anything = st.recursive(
    scalars, lambda x: st.lists(x) | st.tuples(x, x) | st.dictionaries(st.text(), x) | st.iterables(x), max_leaves=6
)


@given(anything)
@settings(max_examples=40, deadline=None)
def test_whatever_is_returned_gives_scores_or_one_sentence(values):
    try:
        sums, scores = combine(mine=RewardComponent(1.0, lambda **_: values))
    except (MannersError, FloatingPointError) as error:
        assert str(error).startswith("method.rewards.mine ")
    else:
        assert len(sums) == len(scores["mine"]) == 2 and all(type(v) is float and not math.isinf(v) for v in sums)


def test_combine_rewards_refuses_a_wrong_number_of_scores():
    with pytest.raises(MannersError, match=r"method\.rewards\.mine gave 1 scores for 2 replies"):
        combine(mine=RewardComponent(1.0, lambda **_: [1.0]))


def test_combine_rewards_names_the_reply_of_an_infinite_score():
    with pytest.raises(FloatingPointError, match=r"method\.rewards\.mine gave inf .*'Because I say so'"):
        combine(mine=RewardComponent(1.0, lambda **_: [1.0, math.inf]))


def test_function_that_fails_is_named_with_its_line():
    def broken(completions, **_):
        return [{}["score"] for _ in completions]

    line = broken.__code__.co_firstlineno + 1
    with pytest.raises(MannersError, match=rf"^method\.rewards\.mine failed: KeyError: 'score' \(.*\.py:{line}\)\.$"):
        combine(mine=RewardComponent(1.0, broken))
    with pytest.raises(MannersError, match=r"A reward function takes \*\*kwargs, as in TRL\."):
        combine(mine=RewardComponent(1.0, lambda completions: [1.0, 2.0]))


def test_async_functions_are_awaited_at_the_same_time():
    """Each waits for the other to begin."""
    started = [asyncio.Event(), asyncio.Event()]

    def make(mine, other):
        async def score(completions, **_):
            mine.set()
            await asyncio.wait_for(other.wait(), 5)
            return [float(len(c[0]["content"])) for c in completions]

        return score

    class Callable:
        async def __call__(self, **_):
            return [1.0, None]

    first, second = (RewardComponent(1.0, make(*pair)) for pair in (started, started[::-1]))
    sums, _ = combine(first=first, second=second, third=RewardComponent(1.0, Callable()))
    assert sums == [23.0, 32.0]


def test_async_function_that_fails_is_named():
    async def broken(**_):
        raise ValueError("no answer")

    with pytest.raises(MannersError, match=r"method\.rewards\.mine failed: ValueError: no answer"):
        combine(mine=RewardComponent(1.0, broken))


# --- What functions are given ---


def test_functions_see_the_progress_and_log_as_in_trl():
    def shaped(completions, trainer_state, log_metric, log_extra, **_):
        log_metric("accuracy", 0.5)
        log_metric("accuracy", torch.tensor(1.5))
        log_extra("words", [len(c[0]["content"].split()) for c in completions])
        return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

    log, state = RewardLog(), TrainerState(global_step=3, max_steps=4)
    components = {"mine": RewardComponent(1.0, shaped)}
    sums, _ = combine_rewards(components, PROMPTS, REPLIES, COMPLETION_IDS, HAS_EOS, state, log)
    assert sums == [0.75, 0.75]
    assert (dict(log.metrics), log.columns) == ({"accuracy": [0.5, 1.5]}, {"words": [2, 4]})
    assert combine(**components)[0] == [1.0, 1.0]  # an evaluation scores as at the end of training


def test_logged_columns_hold_what_json_does():
    given = [np.float32(0.5), torch.tensor([1, 2]), math.nan, {"a": [None]}, b"x"]

    def shaped(completions, log_extra, **_):
        for i, value in enumerate(given):
            log_extra(f"c{i}", [value] * len(completions))
        return [0.0] * len(completions)

    log = RewardLog()
    combine_rewards({"mine": RewardComponent(1.0, shaped)}, PROMPTS, REPLIES, COMPLETION_IDS, HAS_EOS, None, log)
    first = [values[0] for values in log.columns.values()]
    assert first == [0.5, "tensor([1, 2])", "nan", {"a": [None]}, "b'x'"]
    assert json.loads(json.dumps(log.columns)) == log.columns


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda log_metric, **_: log_metric("a,b", 1.0), r"log_metric\('a,b', …\): a metric's name"),
        (lambda log_metric, **_: log_metric("a", "high"), r"log_metric\('a', 'high'\): the value must be a number"),
        (lambda log_extra, **_: log_extra("kl", [1, 2]), r"log_extra\('kl', …\): the table of replies has this column"),
        (lambda log_extra, **_: log_extra("a", [1]), r"log_extra\('a', …\) got 1 values for 2 replies"),
    ],
)
def test_what_cannot_be_logged_is_refused(call, message):
    with pytest.raises(MannersError, match=message):
        combine(mine=RewardComponent(1.0, call))


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_try_components_scores_two_replies_at_most(count):
    calls = []

    def spy(prompts, completions, completion_ids, has_eos, **_):
        calls.append(len(prompts))
        assert len(prompts) == len(completions) == len(completion_ids) == len(has_eos)
        return [0.0] * len(prompts)

    try_components({"mine": RewardComponent(1.0, spy)}, [PROMPTS[0]] * count)
    assert calls == [min(count, 2)]
    with pytest.raises(MannersError, match="mine gave inf"):
        try_components({"mine": RewardComponent(1.0, lambda **_: [math.inf] * 2)}, PROMPTS)


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


def test_trial_gives_the_state_of_the_end_of_training():
    seen = []

    def reads(completions, trainer_state, **_):
        seen.append((trainer_state.global_step, trainer_state.max_steps))
        return [0.0] * len(completions)

    try_components({"x": RewardComponent(1.0, reads)}, PROMPTS)
    assert seen == [(end_of_training().global_step, end_of_training().max_steps)]
