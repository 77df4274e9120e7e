"""A run that is cut off at any step ends, when started again, in the very same weights and metrics."""

import copy
import os
import signal
from typing import Any

import pytest
import torch

from manners.methods.lightning_fit import LAST, ProgressBar
from manners.models.lora import prepare_for_training
from manners.runtime import signals
from manners.runtime.signals import ShutdownRequested
from tests.methods.test_sft import run, weights

STEPS = 11


class Cut(Exception):
    """Stands for a kill: nothing that the program would do on its way out is done."""


def start(model, folder, log, **settings):
    # Dropout draws random numbers at each step, so a restart must restore them too.
    torch.manual_seed(1)
    model = prepare_for_training(copy.deepcopy(model), "lora", 4, 8, 0.2, "all-linear")
    fitted, _ = run(model, folder, steps=STEPS, accumulate=2, size=2, log=log, logging_steps=2, **settings)
    return weights(model), fitted


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    from tests.conftest import small_qwen2

    model, logged = small_qwen2.__wrapped__(tokenizer), {}
    final, fitted = start(
        model, tmp_path_factory.mktemp("whole"), lambda m, s: logged.update({(k, s): v for k, v in m.items()})
    )
    return final, fitted, logged


@pytest.mark.parametrize("cut_after", [1, 3, 4, 6, 7, 10])
def test_cut_off_and_started_again(small_qwen2, tmp_path, monkeypatch, whole, cut_after):
    """Saved every 2 steps, validated every 3: the cuts fall before, on and after both."""
    final, fitted, metrics = whole
    folder = tmp_path / "cut"
    logged: dict[tuple[str, int], float] = {}

    def log(m: dict[str, float], step: int) -> None:
        logged.update({(k, step): v for k, v in m.items()})

    def die(self: Any, trainer: Any, *_: Any) -> None:
        if trainer.global_step == cut_after:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "on_train_batch_end", die)  # the last callback of the step
        with pytest.raises(Cut):
            start(small_qwen2, folder, log)
    assert (folder / LAST).exists() == (cut_after >= 2)
    again, refitted = start(small_qwen2, folder, log)
    assert refitted.resumed_from == {1: 0, 3: 2, 4: 4, 6: 4, 7: 6, 10: 10}[cut_after]
    assert (refitted.steps, refitted.best_step, refitted.best_loss) == (
        fitted.steps,
        fitted.best_step,
        fitted.best_loss,
    )
    assert final.keys() == again.keys()
    assert all(torch.equal(final[name], again[name]) for name in final)
    untimed = {k: v for k, v in metrics.items() if "per_second" not in k[0]}
    assert untimed == {k: v for k, v in logged.items() if "per_second" not in k[0]}


@pytest.mark.parametrize("at", [2, 6])
def test_told_to_stop_it_saves_at_that_very_step(small_qwen2, tmp_path, whole, at):
    """Nothing else saves it. After step 6 comes a validation, whose result belongs to the checkpoint."""
    final, fitted, metrics = whole
    logged: dict[tuple[str, int], float] = {}

    def log(m: dict[str, float], step: int) -> None:
        logged.update({(k, step): v for k, v in m.items()})
        if step == at and "train/loss" in m:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(ShutdownRequested):
        start(small_qwen2, tmp_path / "cut", log, save_steps=100)
    again, refitted = start(small_qwen2, tmp_path / "cut", log, save_steps=100)
    assert refitted.resumed_from == at
    assert refitted.best_loss == fitted.best_loss
    assert all(torch.equal(final[name], again[name]) for name in final)
    assert metrics.keys() == logged.keys()


def test_a_second_signal_ends_it_at_once():
    with pytest.raises(ShutdownRequested), signals.defer_signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.shutdown_requested()
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it should have ended")
    assert not signals.shutdown_requested()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_checkpoint_half_written_is_never_met(small_qwen2, tmp_path, monkeypatch):
    from manners.runtime import atomic_io

    def die(*_: Any) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(atomic_io.os, "replace", die)  # all is written but not yet in place
        with pytest.raises(Cut):
            start(small_qwen2, tmp_path / "cut", lambda m, s: None)
    assert not (tmp_path / "cut" / LAST).exists()
    final, _ = start(small_qwen2, tmp_path / "cut", lambda m, s: None)
    whole, _ = start(small_qwen2, tmp_path / "whole", lambda m, s: None)
    assert all(torch.equal(final[name], whole[name]) for name in whole)
