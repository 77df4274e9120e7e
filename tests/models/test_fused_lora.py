"""Our LoRA layer against peft's, and its gradients against finite differences."""

import copy

import pytest
import torch
from peft.tuners.lora import Linear

from manners.models.lora import FusedLoraLinear, LoraProduct, prepare_for_training, trainable_parameters
from tests.families import language_model

IDS = torch.arange(2, 42).view(2, 20)


def lively(**how):
    """A LoRA that does something: a fresh one's B is 0."""
    torch.manual_seed(1)
    settings = {"lora_dropout": 0.0, "target_modules": "all-linear"} | how
    model = prepare_for_training(language_model("qwen2"), "lora", 4, 8, **settings)
    with torch.no_grad():
        for weight in trainable_parameters(model).values():
            weight.normal_(std=0.1)
    return model.train()


def peft_s(model):
    model = copy.deepcopy(model)
    for layer in model.modules():
        if type(layer) is FusedLoraLinear:
            layer.__class__ = Linear
    return model


def outcome(model):
    """Logits and gradients."""
    model.zero_grad()
    logits = model(IDS).logits
    logits.float().logsumexp(-1).sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in trainable_parameters(model).values())]


@pytest.mark.parametrize("bias", [True, False])
def test_its_gradients_are_those_of_finite_differences(bias):
    torch.manual_seed(0)
    x, w, a, b = (torch.randn(*shape, dtype=torch.double) for shape in ((2, 3, 5), (4, 5), (2, 5), (4, 2)))
    for leaf in (x, a, b):
        leaf.requires_grad_()
    offset = torch.randn(4, dtype=torch.double) if bias else None
    by_hand = x @ w.t() + 0.7 * (x @ a.t() @ b.t()) + (offset if bias else 0)
    torch.testing.assert_close(LoraProduct.apply(x, w, offset, a, b, 0.7), by_hand)
    assert torch.autograd.gradcheck(lambda x, a, b: LoraProduct.apply(x, w, offset, a, b, 0.7), (x, a, b))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_says_and_learns_what_pefts_does(checkpointing, monkeypatch):
    model = lively(gradient_checkpointing=checkpointing)
    expected = outcome(peft_s(model))
    used = []
    plain = LoraProduct.forward
    monkeypatch.setattr(LoraProduct, "forward", staticmethod(lambda *args: used.append(1) or plain(*args)))
    for mine, theirs in zip(outcome(model), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert len(used) >= 7 * model.config.num_hidden_layers


@pytest.mark.parametrize("how", ["dropout", "autocast", "off", "merged"])
def test_what_it_cannot_do_is_left_to_peft(how):
    model = lively(lora_dropout=0.5 if how == "dropout" else 0.0)
    other = peft_s(model)
    if how == "merged":
        model.merge_adapter(), other.merge_adapter()
    found = []
    for each in (model, other):
        torch.manual_seed(3)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            if how == "off":
                with each.disable_adapter():
                    found.append(each(IDS).logits)
            else:
                found.append(each(IDS).logits)
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)
