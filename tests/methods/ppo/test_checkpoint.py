"""What a restart finds: everything or nothing."""

import pytest
import torch

from manners.methods.ppo.checkpoint import TrainerState, load_checkpoint, save_checkpoint, trainable_weights
from manners.methods.ppo.diagnostics import WINDOW, CollapseDetector
from manners.methods.ppo.trainer import make_optimizer
from tests.methods.ppo.cases import policy, ppo


def test_a_checkpoint_holds_all_that_a_run_remembers(small_qwen2, tmp_path):
    """So that a restart neither warns of the same collapse again nor forgets what the replies were like at first."""
    actor, collapse = policy(small_qwen2), CollapseDetector()
    for reward in range(2 * WINDOW):
        collapse.watch(float(reward), 20.0, ["no no no no"] if reward > WINDOW else ["the cat eats a fish"])
    assert collapse.warned and collapse.first
    state = TrainerState(0.07, 16, -0.25, 12, collapse)
    optimizer = make_optimizer(actor, ppo())
    before = trainable_weights(actor)
    save_checkpoint(tmp_path, state, actor, optimizer)
    with torch.no_grad():
        actor.value_head.weight.add_(1)
    assert load_checkpoint(tmp_path, actor, optimizer) == state
    assert all(torch.equal(p, before[name]) for name, p in trainable_weights(actor).items())


def test_a_checkpoint_half_written_is_never_met(small_qwen2, tmp_path, monkeypatch):
    class Cut(Exception):
        pass

    def die(*_):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("manners.runtime.atomic_io.os.replace", die)  # all is written but not yet in place
        with pytest.raises(Cut):
            save_checkpoint(
                tmp_path, TrainerState(0.05), policy(small_qwen2), make_optimizer(policy(small_qwen2), ppo())
            )
    actor = policy(small_qwen2)
    assert load_checkpoint(tmp_path, actor, make_optimizer(actor, ppo())) is None


def test_a_checkpoint_of_another_model_is_refused(small_qwen2, tmp_path):
    lora, full = policy(small_qwen2), policy(small_qwen2, "none")
    save_checkpoint(tmp_path, TrainerState(0.05), lora, make_optimizer(lora, ppo()))
    with pytest.raises(RuntimeError, match="another model"):
        load_checkpoint(tmp_path, full, make_optimizer(full, ppo()))
