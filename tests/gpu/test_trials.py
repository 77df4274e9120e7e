"""The trials in small, on a CPU: all that the GPU tests run, up to the device."""

import math

import pytest

from manners.models.lora import prepare_for_training
from manners.runtime.device import Device
from tests.gpu.trials import SMALL, in_four_bits, network, play, sft

CPU, CAST = Device("cpu", "32"), Device("cpu", "bf16")


def test_bf16_begins_at_the_loss_of_32_bits(tmp_path):
    exact, cast = (
        sft(
            prepare_for_training(network(SMALL), "lora", 16, 32, 0.0, "all-linear"),
            device,
            tmp_path / device.precision,
            3,
            2,
            16,
        )
        for device in (CPU, CAST)
    )
    assert exact["first loss"] == pytest.approx(math.log(SMALL["vocab_size"]), rel=0.02)  # it knows nothing yet
    assert cast["first loss"] == pytest.approx(exact["first loss"], rel=0.01)
    assert cast["first loss"] != exact["first loss"]
    assert cast["last loss"] < cast["first loss"] and cast["tokens/s"] > 0


def test_four_bits_take_less_memory_than_sixteen_and_learn(tmp_path):
    model, sixteen, four = in_four_bits(SMALL, tmp_path / "base")
    assert four < sixteen
    figures = sft(model, CAST, tmp_path / "run", 2, 2, 16)
    assert figures["last loss"] < figures["first loss"]


def test_ppo_begins_at_its_reference(tmp_path, tokenizer):
    metrics, _ = play(SMALL, CPU, tmp_path, tokenizer, 8, 8)
    assert len(metrics) == 2
    assert metrics[0]["val/ratio_first"] == pytest.approx(1, abs=1e-4)
    assert metrics[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert metrics[1]["objective/kl_k3"] > 1e-9  # and then it moves
