"""On one NVIDIA GPU, with the architecture of Qwen2.5-0.5B and random weights: ``make test-gpu``.

Speed and memory are written to ``experiments/gpu.md``. Without a GPU everything is skipped; ``test_trials`` runs the
same code on a CPU with a small model.
"""

import math

import pytest
import torch

from manners.models.lora import prepare_for_training
from manners.runtime.device import Device
from manners.runtime.paths import ROOT
from tests.gpu.trials import QWEN2_0_5B, load_in_4_bits, random_qwen2, train_sft, train_small_ppo

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=f"torch {torch.__version__} finds no NVIDIA GPU"),
]
FP32, BF16 = Device("cuda", "32"), Device("cuda", "bf16")


@pytest.fixture(scope="module")
def report():
    """A function that takes a name and its measurements; all are written to a table at the end."""
    lines = []
    yield lambda name, measurements: lines.append((name, measurements))
    if lines:
        text = [
            f"# On a GPU: {torch.cuda.get_device_name()}\n",
            f"torch {torch.__version__}, Qwen2.5-0.5B with random weights. SFT on 8 rows of 512 tokens, PPO on",
            "64 replies of at most 48 tokens. Written by `make test-gpu`.\n",
            "| | measurements |\n| --- | --- |",
            *(f"| {name} | {', '.join(f'{k} {v:,.3g}' for k, v in values.items())} |" for name, values in lines),
        ]
        (ROOT / "experiments" / "gpu.md").write_text("\n".join(text) + "\n")


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_bf16_starts_at_the_loss_of_fp32_and_trains(tmp_path, report, adapter):
    model = prepare_for_training(random_qwen2(QWEN2_0_5B), adapter, 16, 32, 0.0, "all-linear")
    fp32 = train_sft(model, FP32, tmp_path / "fp32", 1)
    model = prepare_for_training(random_qwen2(QWEN2_0_5B), adapter, 16, 32, 0.0, "all-linear")
    bf16 = train_sft(model, BF16, tmp_path / "bf16", 20)
    name = "LoRA" if adapter == "lora" else "full fine-tuning"
    report(f"SFT, {name}, 32 bits, one step", fp32)
    report(f"SFT, {name}, bf16", bf16)
    assert fp32["first loss"] == pytest.approx(math.log(QWEN2_0_5B["vocab_size"]), rel=0.02)
    assert bf16["first loss"] == pytest.approx(fp32["first loss"], rel=0.01)
    assert bf16["last loss"] < bf16["first loss"]


def test_qlora_needs_less_memory_than_16_bits_and_trains(tmp_path, report):
    model, bytes_16_bit, bytes_4_bit = load_in_4_bits(QWEN2_0_5B, tmp_path / "base")
    measurements = train_sft(model, BF16, tmp_path / "run", 20)
    sizes = {"base in 16 bits, GB": bytes_16_bit / 1e9, "base in 4 bits, GB": bytes_4_bit / 1e9}
    report("SFT, QLoRA", measurements | sizes)
    assert bytes_4_bit < bytes_16_bit
    assert measurements["last loss"] < measurements["first loss"]


def test_ppo_starts_at_its_reference(tmp_path, report, tokenizer):
    metrics, cost = train_small_ppo(QWEN2_0_5B, BF16, tmp_path, tokenizer, 64, 48)
    report("PPO, LoRA, bf16, two iterations", cost)
    assert metrics[0]["val/ratio_first"] == pytest.approx(1, abs=1e-3)
    assert metrics[0]["objective/kl"] == pytest.approx(0, abs=1e-3)
    assert all(math.isfinite(value) for values in metrics for value in values.values())
