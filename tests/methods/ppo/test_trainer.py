"""Whole runs: the reward rises, a killed run ends as if nothing had been, and a broken number is told."""

import json
import math
import os
import signal

import pytest
import torch

from manners.errors import MannersError
from manners.methods.distributed import ProcessGroup
from manners.methods.callbacks import LAST
from manners.methods.ppo.checkpoint import trainable_weights
from manners.methods.ppo.trainer import (
    PPOTrainer,
    compute_advantages,
    pick_prompts,
    sampling_uniforms,
    score_replies,
    train_ppo,
)
from manners.rewards.combine import RewardComponent
from manners.runtime.signals import ShutdownRequested
from tests.methods.ppo.cases import (
    early_stops,
    preferred_tokens,
    policy,
    ppo,
    prompts,
    rloo,
    sample_rollout,
    preferred_share,
)

CRITICS = {"ppo": "head", "rloo": "none"}
HELD_OUT = 100  # the number of the first held-out prompt


class Cut(Exception):
    """Stands for a kill: nothing that the program would do on its way out is done."""


class Run:
    """One run, and all that it told."""

    def __init__(self, model, tokenizer, settings, folder, parts=None, cut=None, kind="lora", critic=None):
        self.metrics, self.tables, self.said, self.seen = {}, {}, [], {}
        self.trained = policy(model, kind, critic or CRITICS[settings.name])
        self.cut = cut
        folder.mkdir(exist_ok=True)
        self.result = None
        stops, parts = early_stops(tokenizer), parts or preferred_share(preferred_tokens(model))
        trainer = PPOTrainer(self.trained, tokenizer, stops, parts, settings, seed=3, process_group=ProcessGroup())
        asked = prompts(12), prompts(5, HELD_OUT)
        self.go = lambda: train_ppo(trainer, *asked, folder, self.log, self.table, self.said.append)

    def __call__(self):
        self.result = self.go()
        return self

    def log(self, metrics, step):
        self.metrics |= {(name, step): value for name, value in metrics.items()}
        if "eval/scores" in metrics:
            self.seen[step] = trainable_weights(self.trained)
        elif step == self.cut:
            raise Cut

    def table(self, rows, name):
        assert name not in self.tables
        self.tables[name] = rows

    def of(self, name):
        return [value for (key, _), value in sorted(self.metrics.items(), key=lambda m: m[0][1]) if key == name]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- It learns ---


@pytest.mark.parametrize("make", [ppo, rloo])
def test_the_reward_rises(small_qwen2, tokenizer, tmp_path, make):
    settings = make(
        total_episodes=15 * 32, batch_size=32, learning_rate=1e-2, kl_coef=0.0, num_ppo_epochs=2, eval_steps=15
    )
    run = Run(small_qwen2, tokenizer, settings, tmp_path)()
    rewards = run.of("objective/scores")
    assert len(rewards) == 15
    assert 0.35 < rewards[0] < 0.65  # half of the tokens are preferred_tokens
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.2
    before, after = run.of("eval/scores")
    assert after > before + 0.2
    assert run.result.best_reward == after
    assert max(abs(r - 1) for r in run.of("val/ratio_first")) < 1e-5


def test_a_price_on_kl_holds_the_policy_back(small_qwen2, tokenizer, tmp_path):
    same_run = {"total_episodes": 8 * 32, "batch_size": 32, "learning_rate": 1e-2}
    free, held = (
        Run(small_qwen2, tokenizer, ppo(**same_run, kl_coef=kl_coef), tmp_path / str(kl_coef))()
        for kl_coef in (0.0, 2.0)
    )
    assert free.of("objective/kl")[0] == held.of("objective/kl")[0] == 0.0  # no step was taken yet
    assert 0 < held.of("objective/kl_k3")[-1] < 0.5 * free.of("objective/kl_k3")[-1]


# --- It goes on where it was cut off ---


def resumable(make, **changes):
    """Seven iterations; saved every 2, evaluated every 3, a table every 2."""
    spread = {"total_episodes": 7 * 8, "save_steps": 2, "eval_steps": 3, "log_samples_steps": 2, "log_samples": 3}
    adaptive = {"adaptive_kl": True, "kl_target": 0.5, "kl_horizon": 50, "learning_rate": 5e-3, "num_ppo_epochs": 2}
    return make(**(spread | adaptive | changes))


CASES = [
    (ppo, "lora", None, (1, 4, 7)),
    (ppo, "lora", "adapter", (5,)),
    (ppo, "none", None, (3,)),
    (rloo, "lora", None, (6,)),
    pytest.param(ppo, "lora", None, (2, 3, 6), marks=pytest.mark.long),
    pytest.param(rloo, "lora", None, (3,), marks=pytest.mark.long),
]


@pytest.mark.parametrize("make, kind, critic, cuts", CASES)
def test_cut_off_and_started_again(small_qwen2, tokenizer, tmp_path, make, kind, critic, cuts):
    settings = resumable(make)
    whole = Run(small_qwen2, tokenizer, settings, tmp_path / "whole", kind=kind, critic=critic)()
    assert whole.result.resumed_from == 0
    assert len(set(whole.of("objective/kl_coef"))) == 7  # the kl_coef does adapt
    assert len(whole.tables) == 3 and all(len(rows) == 3 for rows in whole.tables.values())
    for cut in cuts:
        folder = tmp_path / f"cut{cut}"
        first = Run(small_qwen2, tokenizer, settings, folder, cut=cut, kind=kind, critic=critic)
        with pytest.raises(Cut):
            first()
        again = Run(small_qwen2, tokenizer, settings, folder, kind=kind, critic=critic)()
        assert again.result.resumed_from == (cut - 1) // 2 * 2
        assert (folder / LAST).exists()
        assert same(trainable_weights(again.trained), trainable_weights(whole.trained))
        assert first.metrics | again.metrics == whole.metrics
        assert {k: v for k, v in whole.metrics.items() if k[1] > again.result.resumed_from}.items() <= (
            again.metrics.items()
        )
        assert first.tables | again.tables == whole.tables
        assert (again.result.best_iteration, again.result.best_reward) == (
            whole.result.best_iteration,
            whole.result.best_reward,
        )
    # What is bitwise the same is not so because nothing moved.
    assert not same(whole.seen[0], whole.seen[7])


@pytest.mark.parametrize("when, saved", [("scored", 4), ("evaluated", 3)])
def test_told_to_stop_it_saves_and_goes_on(small_qwen2, tokenizer, tmp_path, when, saved):
    """While the fifth iteration is scored, which then has changed nothing; and in the third, evaluated to its end."""
    settings = resumable(ppo, save_steps=100)
    whole = Run(small_qwen2, tokenizer, settings, tmp_path / "whole")()
    (pay,) = preferred_share(preferred_tokens(small_qwen2)).values()
    scored = []

    def told(*args, **columns):
        scored.append(len(scored))  # the evaluations score too: before the first iteration and after the third
        if (when, len(scored)) in (("scored", 7), ("evaluated", 5)):
            os.kill(os.getpid(), signal.SIGTERM)
        return pay.function(*args, **columns)

    first = Run(small_qwen2, tokenizer, settings, tmp_path / "cut", parts={"share": RewardComponent(pay.weight, told)})
    with pytest.raises(ShutdownRequested):
        first()
    again = Run(small_qwen2, tokenizer, settings, tmp_path / "cut")()
    assert again.result.resumed_from == saved
    assert same(trainable_weights(again.trained), trainable_weights(whole.trained))
    assert (first.metrics | again.metrics).keys() == whole.metrics.keys()


def test_a_finished_run_started_again_is_as_it_was(small_qwen2, tokenizer, tmp_path):
    settings = resumable(ppo, save_steps=7)
    whole = Run(small_qwen2, tokenizer, settings, tmp_path)()
    again = Run(small_qwen2, tokenizer, settings, tmp_path)()
    assert again.metrics == {}
    assert same(trainable_weights(again.trained), trainable_weights(whole.trained))
    assert again.result.best_reward == whole.result.best_reward


# --- What it keeps ---


def test_the_weights_that_scored_best_on_held_out_prompts_are_kept(small_qwen2, tokenizer, tmp_path):
    """A judge that likes the replies of the second evaluation best, whatever they are."""
    marks = iter([0.1, 0.9, 0.4, 0.2])
    share = preferred_share(preferred_tokens(small_qwen2))["share"].function

    def judge(number, **columns):
        return [next(marks)] * len(number) if number[0] >= HELD_OUT else share(**columns)

    run = Run(small_qwen2, tokenizer, resumable(ppo), tmp_path, {"judge": RewardComponent(1.0, judge)})()
    assert run.of("eval/scores") == pytest.approx([0.1, 0.9, 0.4, 0.2])
    assert (run.result.best_iteration, run.result.best_reward) == (3, pytest.approx(0.9))
    assert same(trainable_weights(run.trained), run.seen[3])


def test_metrics_have_trls_names_and_agree_with_each_other(small_qwen2, tokenizer, tmp_path):
    run = Run(small_qwen2, tokenizer, resumable(ppo, missing_eos_penalty=0.5), tmp_path)()
    for step in range(1, 8):
        at = {name: value for (name, when), value in run.metrics.items() if when == step}
        assert at["objective/rlhf_reward"] == pytest.approx(at["objective/scores"] + at["objective/non_score_reward"])
        assert at["objective/non_score_reward"] == pytest.approx(-at["objective/kl_coef"] * at["objective/kl"])
        assert at["objective/kl"] == at["objective/kl_k1"]
        assert at["objective/scores"] == pytest.approx(at["reward/share"] - 0.5 * (1 - at["objective/eos_rate"]))
        assert at["val/num_eos_tokens"] == pytest.approx(8 * at["objective/eos_rate"])
        assert at["episode"] == 8 * step
        assert at["policy/optimizer_steps"] == 2 * 2
    assert run.of("train/learning_rate") == pytest.approx([5e-3 * (1 - i / 7) for i in range(7)])
    assert all(math.isfinite(v) for v in run.metrics.values())


# --- Numbers that break ---


@pytest.mark.parametrize("breaks_at", ["rollout", "evaluation"])
def test_a_reward_that_is_no_number_ends_the_run_in_words(small_qwen2, tokenizer, tmp_path, breaks_at):
    def broken(number, completions, **_):
        bad = (number[0] >= HELD_OUT) == (breaks_at == "evaluation")
        return [0.0] * (len(number) - 1) + [math.nan if bad else 0.0]

    with pytest.raises(MannersError) as error:
        Run(small_qwen2, tokenizer, ppo(), tmp_path, {"mine": RewardComponent(1.0, broken)})()
    file = tmp_path / "broken_batch.json"
    assert "method.rewards.mine gave nan" in str(error.value) and str(file) in str(error.value)
    batch = json.loads(file.read_text())
    assert "nan" in batch["why"]
    assert len(batch["rollout"]) == (5 if breaks_at == "evaluation" else 8)
    assert batch["rollout"][0]["prompt"][0]["role"] == "user"


def test_a_loss_that_breaks_leaves_the_last_checkpoint_to_go_on_from(small_qwen2, tokenizer, tmp_path):
    share = preferred_share(preferred_tokens(small_qwen2))["share"].function
    calls = []

    def huge(number, **columns):
        calls.append(number[0] < HELD_OUT)
        return [1e38 * v for v in share(**columns)] if sum(calls) == 4 and calls[-1] else share(**columns)

    whole = Run(small_qwen2, tokenizer, resumable(ppo), tmp_path / "whole")()
    with pytest.raises(MannersError, match="iteration 4: "):
        Run(small_qwen2, tokenizer, resumable(ppo), tmp_path / "cut", {"share": RewardComponent(1.0, huge)})()
    again = Run(small_qwen2, tokenizer, resumable(ppo), tmp_path / "cut")()
    assert again.result.resumed_from == 2
    assert same(trainable_weights(again.trained), trainable_weights(whole.trained))


# --- Prompts, uniforms, scores ---


def test_every_prompt_is_asked_once_in_an_epoch():
    settings = ppo(batch_size=8)
    asked = [row for it in range(9) for row in pick_prompts(12, settings, 0, it)]
    epochs = [asked[i : i + 12] for i in range(0, 72, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6  # each in an order of its own
    assert pick_prompts(12, settings, 0, 4) == asked[32:40]
    assert [row for it in range(9) for row in pick_prompts(12, settings, 1, it)] != asked


def test_siblings_stand_next_to_each_other():
    rows = [row for it in range(3) for row in pick_prompts(6, rloo(batch_size=8, num_generations=4), 0, it)]
    assert all(len(set(rows[i : i + 4])) == 1 for i in range(0, 24, 4))
    assert sorted(rows[::4]) == list(range(6))


def test_each_iteration_and_seed_has_draws_of_its_own():
    settings = ppo()
    first, second, other = (
        sampling_uniforms(settings, 0, 0),
        sampling_uniforms(settings, 0, 1),
        sampling_uniforms(settings, 1, 0),
    )
    assert first.shape == (8, 8) and first.min() >= 0 and first.max() < 1
    assert torch.equal(first, sampling_uniforms(settings, 0, 0))
    assert not (first == second).any() and not (first == other).any()


def test_scores_are_clipped_and_replies_without_an_end_pay_by_hand(small_qwen2, tokenizer):
    batch = sample_rollout(policy(small_qwen2), tokenizer, early_stops(tokenizer), count=4)
    batch.has_eos = torch.tensor([True, False, True, False])
    parts = {
        "a": RewardComponent(2.0, lambda **_: [0.2, 0.4, 5.0, -9.0]),
        "b": RewardComponent(1.0, lambda **_: [0.1, 0.1, 0.1, 0.1]),
    }
    scores, by_part = score_replies(batch, parts, ppo(reward_clip=1.5, missing_eos_penalty=0.3))
    assert scores.tolist() == pytest.approx([0.5, 0.9 - 0.3, 1.5, -1.5 - 0.3])
    assert by_part == {"a": [0.2, 0.4, 5.0, -9.0], "b": [0.1, 0.1, 0.1, 0.1]}
    scores, _ = score_replies(batch, parts, ppo(missing_eos_penalty=1.0))
    assert scores.tolist() == pytest.approx([0.5, 0.9 - 1, 10.1, -17.9 - 1])


def test_rloo_credits_every_token_with_what_its_reply_has_over_its_siblings(small_qwen2, tokenizer):
    """Before whitening: the score less the kl_coef of the reply's KL, less the siblings' mean."""
    batch = sample_rollout(policy(small_qwen2), tokenizer, early_stops(tokenizer))
    batch.ref_logprobs = torch.where(batch.mask, batch.logprobs - 0.1, 0.0)  # k1 is 0.1 a token
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0, 0.0, 0.0, 0.0, 4.0])
    advantages, returns, kl = compute_advantages(batch, scores, rloo(num_generations=4), 0.5, ProcessGroup())
    assert not returns.any()
    lengths = batch.mask.sum(1)
    assert torch.allclose(kl.sum(1), 0.1 * lengths, atol=1e-4)
    paid = (scores - 0.5 * 0.1 * lengths).tolist()
    raw = [paid[i] - sum(paid[j] for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i) / 3 for i in range(8)]
    tokens = torch.tensor([a for a, n in zip(raw, lengths.tolist(), strict=True) for _ in range(n)]).double()
    wanted = (tokens - tokens.mean()) / tokens.std() + tokens.mean()
    assert torch.allclose(advantages[batch.mask].double(), wanted, atol=1e-4)
