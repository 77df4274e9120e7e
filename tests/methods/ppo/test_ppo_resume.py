"""A PPO run that was killed or stopped resumes to the same weights, bit for bit."""

import math
import os
import signal
from dataclasses import replace

import pytest

from manners.errors import MannersError
from manners.methods.callbacks import LAST
from manners.rewards.combine import RewardComponent
from manners.runtime.signals import ShutdownRequested
from tests.methods.ppo.cases import ppo_config, rewarded_tokens, rloo_config, token_share_reward
from tests.methods.ppo.recorded import FIRST_EVAL_PROMPT, Killed, RecordedRun, equal_weights, seven_iterations

CASES = [  # config, adapter, critic, iterations to kill at
    (ppo_config, "lora", None, (1, 4, 7)),
    (ppo_config, "lora", "adapter", (5,)),
    (ppo_config, "none", None, (3,)),
    (rloo_config, "lora", None, (6,)),
    pytest.param(ppo_config, "lora", None, (2, 3, 6), marks=pytest.mark.long),
    pytest.param(rloo_config, "lora", None, (3,), marks=pytest.mark.long),
]


@pytest.mark.parametrize("make_config, adapter, critic, kills", CASES)
def test_killed_run_resumes_bit_equal(small_qwen2, tokenizer, tmp_path, make_config, adapter, critic, kills):
    config = seven_iterations(make_config)
    full = RecordedRun(small_qwen2, tokenizer, config, tmp_path / "full", adapter=adapter, critic=critic).train()
    assert full.result.resumed_from == 0
    assert len(set(full.values("objective/kl_coef"))) == 7  # the coefficient does adapt
    assert len(full.tables) == 3 and all(len(rows) == 3 for rows in full.tables.values())
    for kill_at in kills:
        folder, kwargs = tmp_path / f"killed{kill_at}", {"adapter": adapter, "critic": critic}
        killed = RecordedRun(small_qwen2, tokenizer, config, folder, kill_at=kill_at, **kwargs)
        with pytest.raises(Killed):
            killed.train()
        resumed = RecordedRun(small_qwen2, tokenizer, config, folder, **kwargs).train()
        assert resumed.result.resumed_from == (kill_at - 1) // 2 * 2
        assert (folder / LAST).exists()
        assert equal_weights(resumed.weights(), full.weights())
        assert killed.metrics | resumed.metrics == full.metrics
        after_checkpoint = {k: v for k, v in full.metrics.items() if k[1] > resumed.result.resumed_from}
        assert after_checkpoint.items() <= resumed.metrics.items()
        assert killed.tables | resumed.tables == full.tables
        assert replace(resumed.result, resumed_from=0) == full.result
    assert not equal_weights(full.eval_weights[0], full.eval_weights[7])  # training did change the weights


@pytest.mark.parametrize(
    "when, saved_iteration", [("while scoring first", 0), ("while scoring", 4), ("while evaluating", 3)]
)
def test_sigterm_saves_and_the_run_resumes_bit_equal(small_qwen2, tokenizer, tmp_path, when, saved_iteration):
    """While the first or fifth iteration is scored, before it changed anything; in the evaluation after the third."""
    config = seven_iterations(ppo_config, save_steps=100)
    full = RecordedRun(small_qwen2, tokenizer, config, tmp_path / "full").train()
    (component,) = token_share_reward(rewarded_tokens(small_qwen2)).values()
    calls = []

    def score(*args, **columns):
        calls.append(1)  # evaluations are scored too: before the first iteration and after the third
        if (when, len(calls)) in (("while scoring first", 2), ("while scoring", 7), ("while evaluating", 5)):
            os.kill(os.getpid(), signal.SIGTERM)
        return component.function(*args, **columns)

    rewards = {"share": RewardComponent(component.weight, score)}
    stopped = RecordedRun(small_qwen2, tokenizer, config, tmp_path / "stopped", rewards)
    with pytest.raises(ShutdownRequested):
        stopped.train()
    resumed = RecordedRun(small_qwen2, tokenizer, config, tmp_path / "stopped").train()
    assert resumed.result.resumed_from == saved_iteration
    assert equal_weights(resumed.weights(), full.weights())
    assert (stopped.metrics | resumed.metrics).keys() == full.metrics.keys()
    assert len(stopped.eval_weights) + len(resumed.eval_weights) == len(full.eval_weights)  # none is done twice


def test_finished_run_started_again_trains_nothing(small_qwen2, tokenizer, tmp_path):
    config = seven_iterations(ppo_config, save_steps=7)
    full = RecordedRun(small_qwen2, tokenizer, config, tmp_path).train()
    again = RecordedRun(small_qwen2, tokenizer, config, tmp_path).train()
    assert again.metrics == {}
    assert equal_weights(again.weights(), full.weights())
    assert replace(again.result, resumed_from=0) == full.result


def test_run_resumes_after_a_nonfinite_loss(small_qwen2, tokenizer, tmp_path):
    share = token_share_reward(rewarded_tokens(small_qwen2))["share"].function
    training_calls = []

    def huge_once(number, **columns):
        is_training = number[0] < FIRST_EVAL_PROMPT
        training_calls.extend([1] * is_training)
        scale = 1e38 if is_training and len(training_calls) == 4 else 1.0
        return [scale * value for value in share(**columns)]

    config = seven_iterations(ppo_config)
    full = RecordedRun(small_qwen2, tokenizer, config, tmp_path / "full").train()
    rewards = {"share": RewardComponent(1.0, huge_once)}
    with pytest.raises(MannersError, match="iteration 4: "):
        RecordedRun(small_qwen2, tokenizer, config, tmp_path / "failed", rewards).train()
    resumed = RecordedRun(small_qwen2, tokenizer, config, tmp_path / "failed").train()
    assert resumed.result.resumed_from == 2
    assert equal_weights(resumed.weights(), full.weights())
    assert all(math.isfinite(value) for value in resumed.metrics.values())
