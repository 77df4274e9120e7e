"""FusedLoraLinear against peft's layer, and its gradients against finite differences."""

import copy

import pytest
import torch
from peft.tuners.lora import Linear

from manners.models.lora import (
    FusedLoraLinear,
    LoraProduct,
    frozen_weights_in_bf16,
    prepare_for_training,
    trainable_parameters,
)
from tests.families import language_model

IDS = torch.arange(2, 42).view(2, 20)


def lora_model(**kwargs):
    """A model in training mode whose LoRA is not zero, as a new one's B is."""
    torch.manual_seed(1)
    kwargs = {"lora_dropout": 0.0, "target_modules": "all-linear"} | kwargs
    model = prepare_for_training(language_model("qwen2"), "lora", 4, 8, **kwargs)
    with torch.no_grad():
        for weight in trainable_parameters(model).values():
            weight.normal_(std=0.1)
    return model.train()


def with_peft_layers(model):
    model = copy.deepcopy(model)
    for layer in model.modules():
        if type(layer) is FusedLoraLinear:
            layer.__class__ = Linear
    return model


def logits_and_gradients(model):
    model.zero_grad()
    logits = model(IDS).logits
    logits.float().logsumexp(-1).sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in trainable_parameters(model).values())]


@pytest.mark.parametrize("has_bias", [True, False])
def test_lora_product_gradients_match_finite_differences(has_bias):
    torch.manual_seed(0)
    x, w, a, b = (torch.randn(*shape, dtype=torch.double) for shape in ((2, 3, 5), (4, 5), (2, 5), (4, 2)))
    for leaf in (x, a, b):
        leaf.requires_grad_()
    bias = torch.randn(4, dtype=torch.double) if has_bias else None
    expected = x @ w.t() + 0.7 * (x @ a.t() @ b.t()) + (bias if has_bias else 0)
    torch.testing.assert_close(LoraProduct.apply(x, w, bias, a, b, 0.7, torch.double), expected)
    assert torch.autograd.gradcheck(lambda x, a, b: LoraProduct.apply(x, w, bias, a, b, 0.7, torch.double), (x, a, b))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fused_logits_and_gradients_match_pefts(checkpointing, monkeypatch):
    model = lora_model(gradient_checkpointing=checkpointing)
    expected = logits_and_gradients(with_peft_layers(model))
    calls = []
    forward = LoraProduct.forward
    monkeypatch.setattr(LoraProduct, "forward", staticmethod(lambda *args: calls.append(1) or forward(*args)))
    for fused, peft in zip(logits_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(fused, peft, atol=1e-5, rtol=1e-4)
    assert len(calls) >= 7 * model.config.num_hidden_layers


@pytest.mark.parametrize("case", ["dropout", "disabled", "merged"])
def test_fused_layer_falls_back_to_peft(case):
    model = lora_model(lora_dropout=0.5 if case == "dropout" else 0.0)
    peft_model = with_peft_layers(model)
    if case == "merged":
        model.merge_adapter(), peft_model.merge_adapter()
    logits = []
    for each in (model, peft_model):
        torch.manual_seed(3)
        with torch.no_grad():
            if case == "disabled":
                with each.disable_adapter():
                    logits.append(each(IDS).logits)
            else:
                logits.append(each(IDS).logits)
    torch.testing.assert_close(logits[0], logits[1], atol=0, rtol=0)


def test_fused_layer_under_autocast_errs_no_more_than_pefts():
    model, runs = lora_model(), {}
    runs["32"] = logits_and_gradients(with_peft_layers(model))
    for name, each in {"fused": model, "peft": with_peft_layers(model)}.items():
        with torch.autocast("cpu", torch.bfloat16):
            runs[name] = logits_and_gradients(each)
    for exact, fused, peft in zip(runs["32"], runs["fused"], runs["peft"], strict=True):
        assert fused.dtype == exact.dtype or fused is runs["fused"][0]
        error, pefts_error = ((each.float() - exact).norm() / exact.norm() for each in (fused, peft))
        assert error < max(1.3 * pefts_error, 0.01)


def test_frozen_weights_in_bf16_change_nothing_under_autocast():
    model = lora_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits_and_gradients(model)
    with frozen_weights_in_bf16(model, enabled=True), torch.autocast("cpu", torch.bfloat16):
        frozen = {p.dtype for p in model.parameters() if not p.requires_grad and p.ndim == 2}
        found = logits_and_gradients(model)
        assert torch.bfloat16 in frozen and all(p.dtype == torch.float32 for p in trainable_parameters(model).values())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], atol=0, rtol=0)
