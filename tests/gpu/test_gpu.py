"""On one NVIDIA GPU, in the true shape of Qwen2.5-0.5B with random weights: ``make test-gpu``.

Speed and memory go to ``experiments/gpu.md``, under the device's name. Without a GPU all is skipped; ``test_trials``
runs the same code on a CPU, in small.
"""

import math

import pytest
import torch

from manners.models.lora import prepare_for_training
from manners.runtime.device import Device
from manners.runtime.paths import ROOT
from tests.gpu.trials import TRUE, in_four_bits, network, play, sft

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=f"torch {torch.__version__} finds no NVIDIA GPU"),
]
EXACT, CAST = Device("cuda", "32"), Device("cuda", "bf16")


@pytest.fixture(scope="module")
def keep():
    """Takes a line of figures; at the end all of them are written down."""
    lines = []
    yield lambda what, figures: lines.append((what, figures))
    if lines:
        text = [
            f"# On a GPU: {torch.cuda.get_device_name()}\n",
            f"torch {torch.__version__}, Qwen2.5-0.5B's shape with random weights. SFT on 8 rows of 512 tokens, PPO on",
            "64 replies of at most 48. Written by `make test-gpu`.\n",
            "| | figures |\n| --- | --- |",
            *(f"| {what} | {', '.join(f'{k} {v:,.3g}' for k, v in found.items())} |" for what, found in lines),
        ]
        (ROOT / "experiments" / "gpu.md").write_text("\n".join(text) + "\n")


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_bf16_begins_at_the_loss_of_32_bits_and_learns(tmp_path, keep, kind):
    model = prepare_for_training(network(TRUE), kind, 16, 32, 0.0, "all-linear")
    exact = sft(model, EXACT, tmp_path / "exact", 1)
    cast = sft(prepare_for_training(network(TRUE), kind, 16, 32, 0.0, "all-linear"), CAST, tmp_path / "cast", 20)
    keep(f"SFT, {'LoRA' if kind == 'lora' else 'all weights'}, 32 bits, one step", exact)
    keep(f"SFT, {'LoRA' if kind == 'lora' else 'all weights'}, bf16", cast)
    assert exact["first loss"] == pytest.approx(math.log(TRUE["vocab_size"]), rel=0.02)
    assert cast["first loss"] == pytest.approx(exact["first loss"], rel=0.01)
    assert cast["last loss"] < cast["first loss"]


def test_qlora_holds_less_than_the_base_in_16_bits_and_learns(tmp_path, keep):
    model, sixteen, four = in_four_bits(TRUE, tmp_path / "base")
    figures = sft(model, CAST, tmp_path / "run", 20)
    keep("SFT, QLoRA", figures | {"base in 16 bits, GB": sixteen / 1e9, "base in 4 bits, GB": four / 1e9})
    assert four < sixteen
    assert figures["last loss"] < figures["first loss"]


def test_ppo_begins_at_its_reference(tmp_path, keep, tokenizer):
    metrics, spent = play(TRUE, CAST, tmp_path, tokenizer, 64, 48)
    keep("PPO, LoRA, bf16, two iterations", spent)
    assert metrics[0]["val/ratio_first"] == pytest.approx(1, abs=1e-3)
    assert metrics[0]["objective/kl"] == pytest.approx(0, abs=1e-3)
    assert all(math.isfinite(value) for found in metrics for value in found.values())
