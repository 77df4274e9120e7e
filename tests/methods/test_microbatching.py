"""Which microbatch a run chooses, and what an out-of-memory error suggests."""

import logging
from types import SimpleNamespace

import pytest
import torch

from manners.data.types import Conversation
from manners.errors import MannersError
from manners.methods import microbatching
from manners.methods.microbatching import (
    longest_row,
    report_out_of_memory,
    resolve_microbatch_size,
    split_sizes,
    step_memory,
    suggest_overrides,
)
from manners.models import memory
from manners.runtime.device import Device
from tests.configs import changed, compose

CPU = Device("cpu", "32")


def conversation(user, assistant, **metadata):
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return Conversation(messages, metadata=metadata)


SPLITS = SimpleNamespace(train=[conversation("a" * 300, "b" * 30), conversation("a" * 90, "b" * 60)])


@pytest.fixture
def memory_of(monkeypatch):
    """Sets the bytes that the machine has."""
    return lambda size: monkeypatch.setattr(memory, "device_memory", lambda _: (size, size))


def sft(**values):
    settings = {"method.per_device_train_batch_size": 16, "hardware.accelerator": "cpu"} | values
    return changed(*(f"{key}={value}" for key, value in settings.items()))


def needed(cfg, rows):
    length, targets = longest_row(cfg, SPLITS)
    return step_memory(cfg, CPU, rows, length, targets)


def test_longest_row_is_guessed_from_the_text():
    """A token for 3 bytes, and 8 for each turn: 100 + 10 + 16, and 20 + 8 in the other row's reply."""
    assert longest_row(sft(), SPLITS) == (126, 28)
    assert longest_row(sft(**{"method.max_length": 50}), SPLITS) == (50, 28)
    assert longest_row(sft(**{"method.packing": "true"}), SPLITS) == (512, 512)


def test_auto_takes_the_whole_batch_where_it_fits(memory_of, caplog):
    memory_of(10**12)
    assert resolve_microbatch_size(sft(), CPU, SPLITS) == 16
    assert caplog.messages == []


def test_auto_halves_the_batch_until_it_fits(memory_of, caplog):
    cfg = sft()
    memory_of((needed(cfg, 4) + needed(cfg, 8)) // 2)
    with caplog.at_level(logging.INFO, "manners"):
        assert resolve_microbatch_size(cfg, CPU, SPLITS) == 4
    assert caplog.messages == ["batches of 16 rows are split into microbatches of 4 to fit into the memory"]


def test_auto_does_not_split_where_not_even_one_row_fits(memory_of, caplog):
    memory_of(10**6)
    assert resolve_microbatch_size(sft(), CPU, SPLITS) == 16
    assert caplog.messages[0].startswith("the run may not fit: about ") and "estimate=true" in caplog.messages[0]


def test_auto_does_not_split_where_the_estimate_fails(monkeypatch, caplog):
    def fail(*_):
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr(microbatching, "step_memory", fail)
    assert resolve_microbatch_size(sft(), CPU, SPLITS) == 16
    assert "could not be estimated (no such thing): no split" in caplog.messages[0]


def test_a_given_microbatch_size_is_taken_up_to_the_batch(memory_of):
    memory_of(1)
    assert resolve_microbatch_size(sft(**{"hardware.microbatch_size": 3}), CPU, SPLITS) == 3
    assert resolve_microbatch_size(sft(**{"hardware.microbatch_size": 99}), CPU, SPLITS) == 16


def test_split_sizes_halve_down_to_one_row():
    assert split_sizes(16, sft()) == [16, 8, 4, 2, 1]
    assert split_sizes(12, sft()) == [12, 6, 3, 2, 1]
    assert split_sizes(12, compose("method=dpo")) == [12, 6, 3, 2, 1]
    assert split_sizes(10, sft()) == [10, 5, 3, 2, 1]
    assert split_sizes(10, compose("method=dpo")) == [10, 5, 2, 1]  # TRL needs microbatches of one size
    assert split_sizes(10, compose("method=kto")) == [10]  # it estimates the KL over the batch


def test_step_memory_grows_with_rows_length_and_targets():
    cfg = sft()
    base = step_memory(cfg, CPU, 4, 100, 50)
    assert step_memory(cfg, CPU, 8, 100, 50) > step_memory(cfg, CPU, 4, 100, 100) > base
    assert step_memory(cfg, CPU, 4, 200, 50) > base
    cfg.method.gradient_checkpointing = True
    assert step_memory(cfg, CPU, 4, 100, 50) < base


def test_reward_rows_hold_every_reply_to_their_prompt():
    others = [{"content": "c" * 60, "score": 0.0}, {"content": "d" * 30, "score": 0.1}]
    row = conversation("a" * 300, "b" * 30, score=1.0, mismatched=others)
    assert microbatching.row_tokens(row, "reward", "assistant", 512) == (126 + 28 + 18, 0)


def test_suggested_overrides_come_cheapest_first():
    cfg = sft(**{"method.per_device_train_batch_size": 4, "method.per_device_eval_batch_size": 2})
    overrides = list(suggest_overrides(cfg))
    assert [o["hardware.microbatch_size"] for o in overrides if "hardware.microbatch_size" in o] == ["2", "1"]
    assert list(dict.fromkeys(next(iter(o)) for o in overrides)) == [
        "hardware.microbatch_size", "method.per_device_eval_batch_size", "evaluation.batch_size",
        "method.gradient_checkpointing", "method.optim", "adapter", "method.max_length",
    ]  # fmt: skip
    cfg.hardware.microbatch_size = 2
    assert next(suggest_overrides(cfg)) == {"hardware.microbatch_size": "1"}


def test_suggested_overrides_of_ppo_split_by_tokens():
    assert next(suggest_overrides(compose("method=ppo", "method.microbatch_tokens=1024"))) == {
        "method.microbatch_tokens": "512"
    }


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_out_of_memory_error_names_overrides(error):
    with pytest.raises(MannersError) as caught, report_out_of_memory(sft()):
        raise error
    text = str(caught.value)
    assert "out of memory in method=sft of tiny" in text
    assert "\n  hardware.microbatch_size=8\n" in text
    assert "method.gradient_checkpointing=true" in text
    assert "adapter=qlora" in text


def test_other_errors_are_not_taken_for_out_of_memory():
    with pytest.raises(RuntimeError, match="shapes"), report_out_of_memory(sft()):
        raise RuntimeError("shapes do not match")
