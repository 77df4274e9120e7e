"""The trials on a CPU with a small model: the same code as the GPU tests."""

import math

import pytest

from manners.models.lora import prepare_for_training
from manners.runtime.device import Device
from tests.gpu.trials import SMALL, load_in_4_bits, random_qwen2, train_sft, train_small_ppo

CPU, BF16 = Device("cpu", "32"), Device("cpu", "bf16")


def test_bf16_starts_at_the_loss_of_fp32_and_trains(tmp_path):
    fp32, bf16 = (
        train_sft(
            prepare_for_training(random_qwen2(SMALL), "lora", 16, 32, 0.0, "all-linear"),
            device,
            tmp_path / device.precision,
            3,
            2,
            16,
        )
        for device in (CPU, BF16)
    )
    assert fp32["first loss"] == pytest.approx(math.log(SMALL["vocab_size"]), rel=0.02)  # of an untrained model
    assert bf16["first loss"] == pytest.approx(fp32["first loss"], rel=0.01)
    assert bf16["first loss"] != fp32["first loss"]
    assert bf16["last loss"] < bf16["first loss"] and bf16["tokens per second"] > 0


def test_4_bits_need_less_memory_than_16_and_train(tmp_path):
    model, bytes_16_bit, bytes_4_bit = load_in_4_bits(SMALL, tmp_path / "base")
    assert bytes_4_bit < bytes_16_bit
    measurements = train_sft(model, BF16, tmp_path / "run", 2, 2, 16)
    assert measurements["last loss"] < measurements["first loss"]


def test_ppo_starts_at_its_reference(tmp_path, tokenizer):
    metrics, _ = train_small_ppo(SMALL, CPU, tmp_path, tokenizer, 8, 8)
    assert len(metrics) == 2
    assert metrics[0]["val/ratio_first"] == pytest.approx(1, abs=1e-4)
    assert metrics[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert metrics[1]["objective/kl_k3"] > 1e-9  # after the first update
