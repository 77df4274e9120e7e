"""The estimate by parts, against models that are really built."""

import pytest
import torch

from manners import memory
from manners.models import adapters, base
from tests.configs import compose

CONFIG = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "vocab_size": 3072, "max_position_embeddings": 512}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    out = tmp_path_factory.mktemp("qwen2")
    Qwen2ForCausalLM(Qwen2Config(**CONFIG, tie_word_embeddings=False)).save_pretrained(out)
    return str(out)


def estimated(folder, *overrides):
    cfg = compose(*overrides, f"model.name={folder}")
    return memory.parts(cfg, base.architecture(folder)), cfg


def test_a_lora_over_four_bits_takes_what_was_counted(folder):
    found, cfg = estimated(folder, "adapter=qlora", "hardware.precision=32")
    model = base.load(folder, quantization="nf4")
    quantized = [p for p in model.parameters() if p.dtype == torch.uint8]
    states = [p.quant_state for p in quantized]
    real = sum(
        p.numel() + s.absmax.numel() + 4 * s.state2.absmax.numel() for p, s in zip(quantized, states, strict=True)
    )
    assert found["weights in 4 bits"] == pytest.approx(real, rel=0.01)
    assert found["embeddings, head and norms"] == sum(
        4 * p.numel() for p in model.parameters() if p.dtype != torch.uint8
    )
    a = cfg.adapter
    model = adapters.adapt(model, "qlora", a.r, a.lora_alpha, a.lora_dropout, a.target_modules)
    assert found["adapter"] == found["gradients"] == sum(4 * p.numel() for p in adapters.trainable(model).values())


def test_full_fine_tuning_keeps_a_gradient_and_two_moments_for_every_weight(folder):
    found, _ = estimated(folder, "adapter=none", "hardware.precision=32")
    weights = sum(4 * p.numel() for p in base.load(folder).parameters())
    assert (found["weights"], found["gradients"], found["optimizer"]) == (weights, weights, 2 * weights)
    assert estimated(folder, "adapter=none", "hardware.optim=paged_adamw_8bit")[0]["optimizer"] == weights / 2


def test_recomputed_activations_are_each_layers_input_and_one_layer_at_a_time(folder):
    """By hand, for 512 tokens: 2 layers' inputs and one layer's insides, of 16 bits each."""
    hard = ["adapter=none", "hardware.precision=bf16", "method.per_device_train_batch_size=1", "method.max_length=512"]
    whole, _ = estimated(folder, *hard)
    spared, _ = estimated(folder, *hard, "method.gradient_checkpointing=true")
    layer = 2 * (6 * 128 + 128 + 4 * 256)
    assert whole["activations"] == 512 * 2 * layer
    assert spared["activations"] == 512 * (2 * 2 * 128 + layer)


def test_the_recipe_of_the_human_user_fits_eight_gigabytes():
    """Qwen2.5-7B's published shape; the part that is largest is the one that four bits make small."""
    from transformers import Qwen2Config

    shape = Qwen2Config(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
                        num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False)  # fmt: skip
    cfg = compose("study=human_user")
    found = memory.parts(cfg, shape)
    assert 6.5 * 2**30 < sum(found.values()) < 8 * 2**30
    whole = memory.parts(compose("study=human_user", "adapter=lora"), shape)
    assert sum(whole.values()) > 24 * 2**30
