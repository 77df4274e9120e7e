"""hardware.compile: losses and gradients equal those of eager layers in every family, and nothing stays compiled."""

import shutil

import pytest
import torch

from manners.errors import MannersError
from manners.models import lora
from manners.models.compile import compiled_layers
from manners.models.logprobs import token_nll
from manners.models.policy import disable_dropout
from tests import families

if not shutil.which("g++"):
    pytest.skip("torch.compile needs a C++ compiler", allow_module_level=True)
SHAPES = [(3, 17), (2, 40), (1, 9)]  # rows, tokens; including a batch of one row


def loss_gradients(model):
    """Gradients by parameter, accumulated over batches of several shapes."""
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        ids = torch.randint(0, families.VOCAB, shape, generator=generator)
        loss_mask = torch.rand(shape[0], shape[1] - 1, generator=generator) < 0.7
        token_nll(model, ids, loss_mask)[0].sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


def num_compiled(model):
    return sum(m._compiled_call_impl is not None for m in model.modules())


@pytest.mark.parametrize(
    "family, kind, checkpointing",
    [
        ("qwen2", "lora", False),
        *(pytest.param(family, "none", False, marks=pytest.mark.long) for family in families.DECODERS),
        pytest.param("qwen2", "none", True, marks=pytest.mark.long),
    ],
)
def test_compiled_layers_give_the_gradients_of_eager_layers(family, kind, checkpointing):
    model = families.language_model(family)
    model = lora.prepare_for_training(model, kind, 4, 8, 0.0, "all-linear", checkpointing).train()
    disable_dropout(model)
    for name, p in model.named_parameters():
        if "lora_B" in name:  # with the initial B of zeros, A has no gradient
            torch.nn.init.normal_(p, std=0.1)
    names, eager = list(model.state_dict()), loss_gradients(model)
    with compiled_layers(model, True):
        assert num_compiled(model) == 2  # both layers
        assert list(model.state_dict()) == names
        compiled = loss_gradients(model)
    assert num_compiled(model) == 0
    assert eager.keys() == compiled.keys() and eager
    for name, expected in eager.items():
        error = (compiled[name] - expected).abs().max() / expected.abs().max()  # float32 rounding is about 1e-5
        assert error < 1e-4, name


def test_compiled_layers_does_nothing_when_disabled():
    model = families.language_model("qwen2")
    with compiled_layers(model, False):
        assert num_compiled(model) == 0


def test_compiled_layers_refuses_a_model_without_known_layers():
    with (
        pytest.raises(MannersError, match="Linear has no layers that can be compiled"),
        compiled_layers(torch.nn.Linear(2, 2), True),
    ):
        pass
