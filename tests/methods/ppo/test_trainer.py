"""The PPO loop: the reward rises, metrics are consistent, the best weights are kept, scores and advantages by hand."""

import json
import math
import random

import pytest
import torch

from manners.errors import MannersError
from manners.methods.distributed import ProcessGroup
from manners.methods.ppo.trainer import compute_advantages, pick_prompts, sampling_uniforms, score_replies
from manners.rewards.combine import RewardComponent
from tests.methods.ppo.cases import (
    make_policy,
    ppo_config,
    rewarded_tokens,
    rloo_config,
    sample_rollout,
    token_share_reward,
)
from tests.methods.ppo.recorded import FIRST_EVAL_PROMPT, RecordedRun, equal_weights, seven_iterations

LARGE_BATCH = {"batch_size": 32, "learning_rate": 1e-2}


# --- Whole runs ---


@pytest.mark.parametrize("make_config", [ppo_config, rloo_config])
def test_train_ppo_raises_the_reward(small_qwen2, tokenizer, tmp_path, make_config):
    config = make_config(**LARGE_BATCH, total_episodes=15 * 32, kl_coef=0.0, num_ppo_epochs=2, eval_steps=15)
    run = RecordedRun(small_qwen2, tokenizer, config, tmp_path).train()
    rewards = run.values("objective/scores")
    assert len(rewards) == 15
    assert 0.35 < rewards[0] < 0.65  # half of the tokens are rewarded
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.2
    before, after = run.values("eval/scores")
    assert after > before + 0.2
    assert run.result.kept_reward == after
    assert max(abs(ratio - 1) for ratio in run.values("val/ratio_first")) < 1e-5


def test_kl_coef_keeps_the_policy_near_the_reference(small_qwen2, tokenizer, tmp_path):
    free, penalized = (
        RecordedRun(
            small_qwen2,
            tokenizer,
            ppo_config(**LARGE_BATCH, total_episodes=8 * 32, kl_coef=kl_coef),
            tmp_path / str(kl_coef),
        ).train()
        for kl_coef in (0.0, 2.0)
    )
    assert free.values("objective/kl")[0] == penalized.values("objective/kl")[0] == 0.0  # before the first step
    assert 0 < penalized.values("objective/kl_k3")[-1] < 0.5 * free.values("objective/kl_k3")[-1]


@pytest.mark.parametrize(
    "evaluations, kept, improved",
    [
        ([0.5, 0.52, 0.9, 0.88], 7, True),  # the third is no better than the last, beyond chance
        ([0.5, 0.9, 0.2, 0.1], 3, True),
        ([0.5, 0.3, 0.2, 0.1], 0, False),  # the start was better: it is kept, which is no improvement
        ([0.5, 0.6, 0.4, 0.5], 7, False),
    ],
)
def test_train_ppo_keeps_the_last_unless_others_are_better(
    small_qwen2, tokenizer, tmp_path, evaluations, kept, improved
):
    """The scores of the five prompts are spread around the mean of each evaluation, each time otherwise."""
    means, noise = iter(evaluations), random.Random(0)
    share = token_share_reward(rewarded_tokens(small_qwen2))["share"].function

    def score(number, **columns):
        if number[0] < FIRST_EVAL_PROMPT:
            return share(**columns)
        offsets = noise.sample([-0.1, -0.05, 0.0, 0.05, 0.1], 5)
        mean = next(means)
        return [mean + offset for offset in offsets]

    rewards = {"score": RewardComponent(1.0, score)}
    run = RecordedRun(small_qwen2, tokenizer, seven_iterations(ppo_config), tmp_path, rewards).train()
    assert run.values("eval/scores") == pytest.approx(evaluations)
    assert run.values("eval/scores_stderr") == pytest.approx([math.sqrt(0.025 / 4 / 5)] * 4, rel=1e-4)
    assert (run.result.kept_iteration, run.result.improved) == (kept, improved)
    assert equal_weights(run.weights(), run.eval_weights[kept])


def test_evaluations_sample_from_the_same_random_numbers(small_qwen2, tokenizer, tmp_path):
    """With a learning rate of 0 the policy does not change, and neither do its sampled replies."""
    config = seven_iterations(ppo_config, learning_rate=0.0, value_learning_rate=0.0)
    run = RecordedRun(small_qwen2, tokenizer, config, tmp_path).train()
    assert len(set(run.values("eval/scores"))) == len(set(run.values("eval/length"))) == 1
    assert run.values("eval/kl") == pytest.approx([0.0] * 4, abs=1e-6)
    assert (run.result.kept_iteration, run.result.improved) == (7, False)


def test_replies_that_no_reward_scores_move_nothing(small_qwen2, tokenizer, tmp_path):
    def mine(completions, trainer_state, **_):
        """No score in training; evaluations are scored as at the end."""
        return [1.0 if trainer_state.global_step == trainer_state.max_steps else None] * len(completions)

    rewards = {"mine": RewardComponent(1.0, mine)}
    for make_config in (ppo_config, rloo_config):
        config = make_config(total_episodes=16, whiten_rewards=True) if make_config is ppo_config else make_config()
        run = RecordedRun(small_qwen2, tokenizer, config, tmp_path / make_config.__name__, rewards)
        before = run.weights()
        run.train()
        assert equal_weights(run.weights(), before)
        assert set(run.values("objective/unscored")) == {1.0} and run.values("objective/scores") == []
        assert all(math.isfinite(value) for value in run.metrics.values())
        assert len(run.warnings) == 1 and "all rewards abstain on some replies" in run.warnings[0]


def test_run_ends_where_no_held_out_reply_has_a_score(small_qwen2, tokenizer, tmp_path):
    rewards = {"mine": RewardComponent(1.0, lambda completions, **_: [None] * len(completions))}
    run = RecordedRun(small_qwen2, tokenizer, ppo_config(), tmp_path, rewards)
    with pytest.raises(MannersError, match=r"all rewards abstain \(None or NaN\) on the replies to all"):
        run.train()


def test_reward_functions_see_the_iteration_and_log(small_qwen2, tokenizer, tmp_path):
    """Half of the replies have a score; means are over these."""

    def mine(completions, number, trainer_state, log_metric, log_extra, **_):
        log_metric("mine/progress", trainer_state.global_step / trainer_state.max_steps)
        log_extra("doubled", [2 * n for n in number])
        return [1.0 if i % 2 else None for i in range(len(completions))]

    rewards = {"mine": RewardComponent(2.0, mine)}
    run = RecordedRun(small_qwen2, tokenizer, seven_iterations(ppo_config), tmp_path, rewards).train()
    assert run.values("mine/progress") == pytest.approx([i / 7 for i in range(7)])
    assert set(run.values("eval/mine/progress")) == {1.0}  # all evaluations score as at the end
    assert set(run.values("reward/mine")) == {1.0} and set(run.values("objective/scores")) == {2.0}
    assert set(run.values("objective/unscored")) == {0.5}
    (row, *_) = run.tables["rollouts/00002.json"]
    assert {"doubled", "mine", "kl"} <= row.keys() and row["mine"] is None


def test_logged_metrics_are_consistent(small_qwen2, tokenizer, tmp_path):
    config = seven_iterations(ppo_config, missing_eos_penalty=0.5)
    run = RecordedRun(small_qwen2, tokenizer, config, tmp_path).train()
    for step in range(1, 8):
        m = {name: value for (name, at), value in run.metrics.items() if at == step}
        assert m["objective/rlhf_reward"] == pytest.approx(m["objective/scores"] + m["objective/non_score_reward"])
        assert m["objective/non_score_reward"] == pytest.approx(-m["objective/kl_coef"] * m["objective/kl"])
        assert m["objective/scores"] == pytest.approx(m["reward/share"] - 0.5 * (1 - m["objective/eos_rate"]))
        assert m["val/num_eos_tokens"] == pytest.approx(8 * m["objective/eos_rate"])
        assert m["episode"] == 8 * step
        assert m["policy/optimizer_steps"] == 2 * 2
        assert m["policy/stopped_early"] == 0
    assert run.values("train/learning_rate") == pytest.approx([5e-3 * (1 - i / 7) for i in range(7)])
    assert all(math.isfinite(value) for value in run.metrics.values())


@pytest.mark.parametrize("where", ["rollout", "evaluation"])
def test_nonfinite_reward_raises_and_saves_the_batch(small_qwen2, tokenizer, tmp_path, where):
    def broken(number, completions, **_):
        is_eval = number[0] >= FIRST_EVAL_PROMPT
        return [0.0] * (len(number) - 1) + [math.inf if is_eval == (where == "evaluation") else 0.0]

    rewards = {"mine": RewardComponent(1.0, broken)}
    with pytest.raises(MannersError) as error:
        RecordedRun(small_qwen2, tokenizer, ppo_config(), tmp_path, rewards).train()
    file = tmp_path / "broken_batch.json"
    assert "method.rewards.mine gave inf" in str(error.value) and str(file) in str(error.value)
    batch = json.loads(file.read_text())
    assert "inf" in batch["why"]
    assert len(batch["rollout"]) == (5 if where == "evaluation" else 8)
    assert batch["rollout"][0]["prompt"][0]["role"] == "user"


# --- Prompts and random numbers ---


def test_pick_prompts_takes_each_prompt_once_an_epoch():
    config = ppo_config(batch_size=8)
    rows = [row for iteration in range(9) for row in pick_prompts(12, config, 0, iteration)]
    epochs = [rows[i : i + 12] for i in range(0, 72, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6  # each in another order
    assert pick_prompts(12, config, 0, 4) == rows[32:40]
    assert [row for iteration in range(9) for row in pick_prompts(12, config, 1, iteration)] != rows


def test_pick_prompts_groups_the_generations_of_a_prompt():
    config = rloo_config(batch_size=8, num_generations=4)
    rows = [row for iteration in range(3) for row in pick_prompts(6, config, 0, iteration)]
    assert all(len(set(rows[i : i + 4])) == 1 for i in range(0, 24, 4))
    assert sorted(rows[::4]) == list(range(6))


def test_sampling_uniforms_depend_on_seed_and_iteration():
    config = ppo_config()
    first, second, other = (sampling_uniforms(config, *case) for case in ((0, 0), (0, 1), (1, 0)))
    assert first.shape == (8, 8) and first.min() >= 0 and first.max() < 1
    assert torch.equal(first, sampling_uniforms(config, 0, 0))
    assert not (first == second).any() and not (first == other).any()


# --- Scores and advantages ---


def test_score_replies_clips_and_penalizes_missing_eos(small_qwen2, tokenizer):
    batch = sample_rollout(make_policy(small_qwen2), tokenizer, count=4)
    batch.has_eos = torch.tensor([True, False, True, False])
    rewards = {
        "a": RewardComponent(2.0, lambda **_: [0.2, 0.4, 5.0, -9.0]),
        "b": RewardComponent(1.0, lambda **_: [0.1, 0.1, 0.1, 0.1]),
    }
    scores, by_component = score_replies(batch, rewards, ppo_config(reward_clip=1.5, missing_eos_penalty=0.3))
    assert scores.tolist() == pytest.approx([0.5, 0.9 - 0.3, 1.5, -1.5 - 0.3])
    assert by_component == {"a": [0.2, 0.4, 5.0, -9.0], "b": [0.1, 0.1, 0.1, 0.1]}
    scores, _ = score_replies(batch, rewards, ppo_config(missing_eos_penalty=1.0))
    assert scores.tolist() == pytest.approx([0.5, 0.9 - 1, 10.1, -17.9 - 1])


def test_compute_advantages_of_rloo_by_hand(small_qwen2, tokenizer):
    """Before the scaling: the score less the KL penalty of the reply, less the mean of the other generations."""
    batch = sample_rollout(make_policy(small_qwen2), tokenizer)
    batch.ref_logprobs = torch.where(batch.mask, batch.logprobs - 0.1, 0.0)  # k1 is 0.1 per token
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0, 0.0, 0.0, 0.0, 4.0])
    config = rloo_config(num_generations=4)
    advantages, returns, kl = compute_advantages(batch, scores, config, 0.5, ProcessGroup())
    assert not returns.any()
    lengths = batch.mask.sum(1)
    assert torch.allclose(kl.sum(1), 0.1 * lengths, atol=1e-4)
    totals = (scores - 0.5 * 0.1 * lengths).tolist()
    others = [[totals[j] for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i] for i in range(8)]
    by_reply = [total - sum(rest) / 3 for total, rest in zip(totals, others, strict=True)]
    by_token = torch.tensor([a for a, n in zip(by_reply, lengths.tolist(), strict=True) for _ in range(n)])
    expected = by_token / torch.tensor(by_reply).std()  # over the replies; their mean is 0
    assert torch.allclose(advantages[batch.mask], expected, atol=1e-3)
