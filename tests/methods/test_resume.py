"""A run that is killed at any step, or runs out of memory, ends in the very same weights and metrics."""

import copy
import os
import signal
from typing import Any, ClassVar

import pytest
import torch

from manners.methods import lightning
from manners.methods.callbacks import LAST, ProgressBar
from manners.methods.sft import SFTModule
from manners.models.lora import prepare_for_training
from manners.runtime import signals
from manners.runtime.signals import ShutdownRequested
from tests.methods.test_sft import run, weights

STEPS = 11


class Killed(Exception):
    """Stands for a kill: nothing that the program would do on its way out is done."""


def train(model, folder, log, dropout=0.2, **settings):
    # Dropout draws random numbers at each step, so a restart must restore their state too.
    torch.manual_seed(1)
    model = prepare_for_training(copy.deepcopy(model), "lora", 4, 8, dropout, "all-linear")
    settings = {"batch_size": 2, "logging_steps": 2} | settings
    result, _ = run(model, folder, steps=STEPS, accumulate=2, log=log, **settings)
    return weights(model), result


def logger():
    """Logged metrics by name and step, and the function that logs them."""
    logged: dict[tuple[str, int], float] = {}
    return logged, lambda metrics, step: logged.update({(k, step): v for k, v in metrics.items()})


def untimed(logged):
    return {key: value for key, value in logged.items() if "per_second" not in key[0]}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(tokenizer, tmp_path_factory):
    from tests.conftest import small_qwen2

    logged, log = logger()
    final, result = train(small_qwen2.__wrapped__(tokenizer), tmp_path_factory.mktemp("uninterrupted"), log)
    return final, result, logged


def killed_after(monkeypatch, step):
    def kill(self: Any, trainer: Any, *_: Any) -> None:
        if trainer.global_step == step:
            raise Killed

    monkeypatch.setattr(ProgressBar, "on_train_batch_end", kill)  # the last callback of the step


@pytest.mark.parametrize("killed_at", [1, 3, 4, 6, 7, 10])
def test_killed_run_resumes_to_the_same_weights_and_metrics(
    small_qwen2, tmp_path, monkeypatch, uninterrupted, killed_at
):
    """Saved every 2 steps, validated every 3: the kills fall before, on and after both."""
    final, result, metrics = uninterrupted
    logged, log = logger()
    with monkeypatch.context() as patch:
        killed_after(patch, killed_at)
        with pytest.raises(Killed):
            train(small_qwen2, tmp_path / "run", log)
    assert (tmp_path / "run" / LAST).exists() == (killed_at >= 2)
    resumed, resumed_result = train(small_qwen2, tmp_path / "run", log)
    assert resumed_result.resumed_from == {1: 0, 3: 2, 4: 4, 6: 4, 7: 6, 10: 10}[killed_at]
    for name in ("steps", "best_step", "best_loss"):
        assert getattr(resumed_result, name) == getattr(result, name)
    assert equal(final, resumed)
    assert untimed(metrics) == untimed(logged)


def test_killed_run_with_neftune_resumes_to_the_same_weights(small_qwen2, tmp_path, monkeypatch, uninterrupted):
    noise, (_, log) = {"neftune_noise_alpha": 5.0}, logger()
    final, _ = train(small_qwen2, tmp_path / "whole", log, **noise)
    with monkeypatch.context() as patch:
        killed_after(patch, 7)
        with pytest.raises(Killed):
            train(small_qwen2, tmp_path / "run", log, **noise)
    assert equal(train(small_qwen2, tmp_path / "run", log, **noise)[0], final)
    assert not equal(uninterrupted[0], final)


@pytest.mark.parametrize("step", [2, 6])
def test_signal_saves_a_checkpoint_at_that_very_step(small_qwen2, tmp_path, uninterrupted, step):
    """Nothing else saves one. After step 6 comes a validation, whose result belongs to the checkpoint."""
    final, result, metrics = uninterrupted
    logged, log = logger()

    def log_and_terminate(m: dict[str, float], at: int) -> None:
        log(m, at)
        if at == step and "train/loss" in m:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(ShutdownRequested):
        train(small_qwen2, tmp_path / "run", log_and_terminate, save_steps=100)
    resumed, resumed_result = train(small_qwen2, tmp_path / "run", log, save_steps=100)
    assert resumed_result.resumed_from == step
    assert resumed_result.best_loss == result.best_loss
    assert equal(final, resumed)
    assert metrics.keys() == logged.keys()


def test_second_signal_ends_the_run_at_once():
    with pytest.raises(ShutdownRequested), signals.defer_signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.shutdown_requested()
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal should have raised")
    assert not signals.shutdown_requested()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_half_written_checkpoint_is_never_resumed_from(small_qwen2, tmp_path, monkeypatch, uninterrupted):
    from manners.runtime import atomic_io

    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(atomic_io.os, "replace", kill)  # everything is written but not yet in place
        with pytest.raises(Killed):
            train(small_qwen2, tmp_path / "run", lambda m, s: None)
    assert not (tmp_path / "run" / LAST).exists()
    assert equal(train(small_qwen2, tmp_path / "run", lambda m, s: None)[0], uninterrupted[0])


def test_early_stopping_counts_on_after_a_restart(small_qwen2, tmp_path, monkeypatch):
    no_progress = {"learning_rate": 0.0, "eval_steps": 1, "save_steps": 1, "patience": 3, "dropout": 0.0}
    final, result = train(small_qwen2, tmp_path / "uninterrupted", lambda m, s: None, **no_progress)
    assert result.best_step + 3 == result.steps < STEPS
    with monkeypatch.context() as patch:
        killed_after(patch, result.steps - 1)
        with pytest.raises(Killed):
            train(small_qwen2, tmp_path / "run", lambda m, s: None, **no_progress)
    resumed, resumed_result = train(small_qwen2, tmp_path / "run", lambda m, s: None, **no_progress)
    assert resumed_result.resumed_from > 0
    assert (resumed_result.steps, resumed_result.best_step) == (result.steps, result.best_step)
    assert equal(final, resumed)


# --- Out of memory ---


class SmallMemory(SFTModule):
    """Raises OutOfMemoryError for more than ``max_rows`` rows, from ``full_from`` on."""

    max_rows, full_from = 2, 0
    failures: ClassVar[list[tuple[int, int]]] = []

    def compute_loss(self, batch):
        rows = len(batch["input_ids"])
        if self.training and self.global_step >= self.full_from and rows > self.max_rows:
            self.failures.append((self.global_step, rows))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().compute_loss(batch)


@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setattr(lightning, "RETRY_ON", ("cpu",))
    monkeypatch.setattr(SmallMemory, "failures", [])
    return {"kind": SmallMemory, "batch_size": 8, "save_steps": 4}


def test_out_of_memory_halves_the_microbatch_to_the_same_result(small_qwen2, tmp_path, small_memory):
    """At the first step, with dropout: the same weights and metrics as with the small microbatch from the start."""
    (logged, log), (logged_small, log_small) = logger(), logger()
    halved, result = train(small_qwen2, tmp_path / "halved", log, **small_memory)
    small = small_memory | {"kind": SFTModule, "microbatch_size": 2}
    final, result_small = train(small_qwen2, tmp_path / "small", log_small, **small)
    assert SmallMemory.failures == [(0, 8), (0, 4)]
    assert equal(halved, final)
    assert untimed(logged) == untimed(logged_small)
    assert (result.steps, result.best_step, result.best_loss) == (STEPS, result_small.best_step, result_small.best_loss)


def test_out_of_memory_resumes_from_the_last_checkpoint(small_qwen2, tmp_path, small_memory, monkeypatch):
    """The steps before it had larger microbatches, so weights are equal up to rounding, and dropout is off."""
    monkeypatch.setattr(SmallMemory, "full_from", 6)
    (logged, log), (logged_small, log_small) = logger(), logger()
    halved, result = train(small_qwen2, tmp_path / "halved", log, dropout=0.0, **small_memory)
    small = small_memory | {"kind": SFTModule, "microbatch_size": 2}
    final, _ = train(small_qwen2, tmp_path / "small", log_small, dropout=0.0, **small)
    assert SmallMemory.failures == [(6, 8), (6, 4)]
    assert (result.steps, result.resumed_from) == (STEPS, 4)
    assert all(torch.allclose(halved[name], final[name], atol=1e-4) for name in final)
    assert untimed(logged).keys() == untimed(logged_small).keys()


def test_restart_keeps_the_microbatch_that_fitted(small_qwen2, tmp_path, small_memory, monkeypatch):
    whole, _ = train(small_qwen2, tmp_path / "uninterrupted", lambda m, s: None, **small_memory)
    SmallMemory.failures.clear()
    with monkeypatch.context() as patch:
        killed_after(patch, 6)
        with pytest.raises(Killed):
            train(small_qwen2, tmp_path / "run", lambda m, s: None, **small_memory)
    resumed, result = train(small_qwen2, tmp_path / "run", lambda m, s: None, **small_memory)
    assert SmallMemory.failures == [(0, 8), (0, 4)]  # all of them before the kill
    assert result.resumed_from == 4
    assert equal(whole, resumed)


def test_out_of_memory_with_one_row_is_raised(small_qwen2, tmp_path, small_memory, monkeypatch):
    monkeypatch.setattr(SmallMemory, "max_rows", 0)
    with pytest.raises(torch.OutOfMemoryError):
        train(small_qwen2, tmp_path / "run", lambda m, s: None, **small_memory)
    assert [rows for _, rows in SmallMemory.failures] == [8, 4, 2, 1]
