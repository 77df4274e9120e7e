"""Checkpoints: complete, written atomically, and only for the model that wrote them."""

import math
import random

import numpy as np
import pytest
import torch

from manners.methods.ppo.checkpoint import (
    TrainerState,
    load_checkpoint,
    save_checkpoint,
    significantly_better,
    trainable_weights,
)
from manners.methods.ppo.diagnostics import WINDOW, CollapseDetector
from manners.methods.ppo.trainer import make_optimizer
from tests.methods.ppo.cases import make_policy, ppo_config


def test_load_checkpoint_restores_state_and_weights(small_qwen2, tmp_path):
    """The state includes the collapse detector: its first window, and the warnings given already."""
    policy, collapse = make_policy(small_qwen2), CollapseDetector()
    for reward in range(2 * WINDOW):
        collapse.update(float(reward), 20.0, ["no no no no"] if reward > WINDOW else ["the cat eats a fish"])
    assert collapse.warned and collapse.first
    state = TrainerState(0.07, 16, collapse, [0.5, float("inf")], [0.25], [-0.25, 2.0], 12, 3)
    optimizer = make_optimizer(policy, ppo_config())
    saved = trainable_weights(policy)
    save_checkpoint(tmp_path, state, policy, optimizer)
    with torch.no_grad():
        policy.value_head.weight.add_(1)
    assert load_checkpoint(tmp_path, policy, optimizer) == state
    assert all(torch.equal(p, saved[name]) for name, p in trainable_weights(policy).items())


def test_load_checkpoint_ignores_a_half_written_file(small_qwen2, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def killed(*_):
        raise Killed

    policy = make_policy(small_qwen2)
    optimizer = make_optimizer(policy, ppo_config())
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("manners.runtime.atomic_io.os.replace", killed)  # all is written, but not in place yet
        save_checkpoint(tmp_path, TrainerState(0.05), policy, optimizer)
    assert load_checkpoint(tmp_path, policy, optimizer) is None


def test_load_checkpoint_refuses_another_model(small_qwen2, tmp_path):
    lora, full = make_policy(small_qwen2), make_policy(small_qwen2, "none")
    save_checkpoint(tmp_path, TrainerState(0.05), lora, make_optimizer(lora, ppo_config()))
    with pytest.raises(RuntimeError, match="another model"):
        load_checkpoint(tmp_path, full, make_optimizer(full, ppo_config()))


# --- Which weights are better ---


@pytest.mark.parametrize(
    "scores, others, better",
    [
        ([1.0, 2.0, 3.0, 4.0], [0.5, 1.4, 2.6, 3.5], True),  # a small gain on every prompt
        ([1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 2.0, 2.0], False),  # a larger mean gain, on three of four
        ([0.5, 1.4, 2.6, 3.5], [1.0, 2.0, 3.0, 4.0], False),
        ([1.0, 1.0], [0.0, 0.0], True),
        ([1.0, 1.0], [1.0, 1.0], False),
        ([9.0], [0.0], False),  # one prompt tells nothing
        ([], [], False),
        ([1.0, 2.0, 3.0, math.nan], [0.5, 1.4, math.nan, 9.0], True),  # a prompt without a score does not count
        ([math.nan] * 3, [0.0] * 3, False),
    ],
)
def test_significantly_better_compares_prompt_by_prompt(scores, others, better):
    assert significantly_better(scores, others) == better


def test_prompts_of_one_cluster_count_once():
    scores, zeros = [1.0, 1.1, 0.9, 1.0, -0.5, 0.2], [0.0] * 6
    assert significantly_better(scores, zeros)
    assert not significantly_better(scores, zeros, 1, np.array([3, 3, 3, 3, 5, 7]))  # three clusters: 1, -0.5, 0.2
    assert significantly_better([*scores, math.nan], [0.0] * 7, 1, np.arange(7))


def test_best_of_equal_candidates_is_seldom_better():
    """Of evaluations that differ by chance, the best one is kept in about 5 % of the runs, not in most of them."""
    rng, kept, naive = random.Random(0), 0, 0
    for _ in range(200):
        last, *earlier = ([rng.gauss(0, 1) for _ in range(24)] for _ in range(11))
        best = max(earlier, key=sum)
        kept += significantly_better(best, last, len(earlier))
        naive += sum(best) > sum(last)
    assert naive > 150 and kept < 30
