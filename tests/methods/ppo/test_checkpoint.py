"""Checkpoints: complete, written atomically, and only for the model that wrote them."""

import pytest
import torch

from manners.methods.ppo.checkpoint import TrainerState, load_checkpoint, save_checkpoint, trainable_weights
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
