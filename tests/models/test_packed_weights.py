"""Products by packed weights are those of the layers themselves, and leave nothing behind."""

import copy

import pytest
import torch
import torch.nn.functional as F

from manners.models.generation import Sampling, generate_ids
from manners.models.lora import FusedLoraLinear, merged_for_generation, prepare_for_training, trainable_parameters
from manners.models.packed_weights import LinearProduct, packed_weights
from tests.families import VOCAB, language_model

IDS = torch.randint(0, VOCAB, (3, 17), generator=torch.Generator().manual_seed(0))
FAMILIES = ("qwen2", "llama", "gpt_neox")  # GPT-2's layers are no linear ones

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


@pytest.fixture(autouse=True)
def worth_it(monkeypatch):
    """Weights as small as those of these models are packed, too."""
    monkeypatch.setattr("manners.models.packed_weights.MIN_BYTES", 0)


def lora_model(family="qwen2", **options):
    """A LoRA whose change is of the order of the weights."""
    model = prepare_for_training(language_model(family), "lora", 4, 8, 0.0, "all-linear", **options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trainable_parameters(model).values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model


def packed_layers(model):
    return [layer for layer in model.modules() if "forward" in vars(layer)]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_layers(family, bf16):
    model = language_model(family)
    linear = [layer for layer in model.modules() if type(layer) is torch.nn.Linear]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        plain = model(IDS).logits
        with merged_for_generation(model):
            assert packed_layers(model) == linear
            packed = model(IDS).logits
    assert packed.dtype == plain.dtype
    torch.testing.assert_close(packed.float(), plain.float(), rtol=0, atol=3e-2 if bf16 else 1e-5)
    assert not packed_layers(model)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_and_its_base_are_one_weight(family, bf16, monkeypatch):
    """peft's own merge is the other answer; neither the weights nor what trains change."""
    model = lora_model(family)
    merged = copy.deepcopy(model).merge_and_unload()
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        with merged_for_generation(model), monkeypatch.context() as patch:
            assert not any("lora_" in name for name, layer in model.named_modules() if "forward" in vars(layer))
            patch.setattr(FusedLoraLinear, "forward", None)  # called where the packed weight is not used
            packed = model(IDS).logits.float()
        rounded = merged(IDS).logits.float()
    exact = merged(IDS).logits
    assert (packed - exact).abs().max() <= 1e-5 + 2 * (rounded - exact).abs().max()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0]) and p.requires_grad == before[name][1]
    assert not packed_layers(model)


def test_adapter_that_is_switched_inside_is_heeded():
    model = lora_model()
    with torch.no_grad(), model.disable_adapter():
        base = model(IDS).logits
    with torch.no_grad(), merged_for_generation(model), model.disable_adapter():
        torch.testing.assert_close(model(IDS).logits, base)


def test_autocast_is_as_before_after_an_error_in_packing(monkeypatch):
    def no_memory(_product):
        raise MemoryError

    monkeypatch.setattr("manners.models.packed_weights.packed_forward", no_memory)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(MemoryError), merged_for_generation(lora_model()):
            pass
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("reason", ["half", "bf16 is not supported", "too large"])
def test_lora_is_merged_where_weights_cannot_be_packed(reason, monkeypatch):
    model = lora_model()
    if reason == "half":
        model = model.half()
    if reason == "too large":
        monkeypatch.setattr("manners.models.packed_weights.MAX_BYTES", 100)
    if reason.startswith("bf16"):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with torch.autocast("cpu", torch.bfloat16, enabled=reason.startswith("bf16")), merged_for_generation(model):
        assert not packed_layers(model)
        assert all(layer.merged for layer in model.modules() if isinstance(layer, FusedLoraLinear))


def test_disabled_adapter_is_not_in_the_packed_weights():
    model = lora_model()
    with torch.no_grad(), model.disable_adapter():
        base = model(IDS).logits
        with merged_for_generation(model):
            torch.testing.assert_close(model(IDS).logits, base)


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_product_with_bias_of_any_number_of_rows(rows):
    layer, x = torch.nn.Linear(24, 40), torch.randn(rows, 2, 24)
    with torch.no_grad(), packed_weights([LinearProduct(layer, layer.weight, layer.bias)]):
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        assert layer(x.transpose(0, 1)).shape == (2, rows, 40)
        assert torch.equal(layer(input=x), F.linear(x, layer.weight, layer.bias))


def test_gradients_flow_as_without():
    model, other = lora_model(), lora_model()
    with merged_for_generation(model):
        model(IDS).logits.sum().backward()
    other(IDS).logits.sum().backward()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_product_in_another_format_is_not_the_packed_one():
    """Weights that were packed in bf16, and a thread without autocast."""
    model = language_model("llama")
    with torch.no_grad():
        plain = model(IDS).logits
        bf16, off = torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False)
        with bf16, merged_for_generation(model), off:
            torch.testing.assert_close(model(IDS).logits, plain, rtol=0, atol=0)


def test_second_user_of_a_model_leaves_the_first_one_alone():
    model = lora_model()
    with torch.no_grad(), merged_for_generation(model):
        inside = packed_layers(model)
        with merged_for_generation(model):
            assert packed_layers(model) == inside
        assert packed_layers(model) == inside
    assert not packed_layers(model)


def test_layers_are_as_before_after_an_error():
    model = lora_model()
    with pytest.raises(RuntimeError, match="stop"), merged_for_generation(model):
        raise RuntimeError("stop")
    assert not packed_layers(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_tokens_are_the_same(family):
    model, prompts = lora_model(family), [[1, 2, 3], [4, 5], [6]]
    plain = generate_ids(model, prompts, Sampling(12, (VOCAB,), 0))
    with merged_for_generation(model):
        assert generate_ids(model, prompts, Sampling(12, (VOCAB,), 0)) == plain


def test_what_a_product_cannot_say_is_merged():
    """DoRA scales the sum by its norms, a bias is added, and GPT-2's layers are no linear ones."""
    for model in (lora_model(use_dora=True), lora_model("gpt2")):
        with torch.no_grad():
            plain = model(IDS).logits
            with merged_for_generation(model):
                assert not packed_layers(model)
                torch.testing.assert_close(model(IDS).logits, plain, rtol=1e-4, atol=1e-4)
