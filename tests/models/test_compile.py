"""hardware.compile: the same losses and gradients as written, in every family, and nothing of it left afterwards."""

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
ROWS = [(3, 17), (2, 40), (1, 9)]  # rows, tokens: a batch of one row, too


def gradients(model, seed=0):
    """Of the loss on batches of several shapes, by parameter."""
    generator = torch.Generator().manual_seed(seed)
    for shape in ROWS:
        ids = torch.randint(0, families.VOCAB, shape, generator=generator)
        chosen = torch.rand(shape[0], shape[1] - 1, generator=generator) < 0.7
        token_nll(model, ids, chosen)[0].sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def calls_compiled(model):
    return sum(m._compiled_call_impl is not None for m in model.modules())


@pytest.mark.parametrize(
    "family, kind, sparing",
    [*((family, "none", False) for family in families.DECODERS), ("qwen2", "lora", False), ("qwen2", "none", True)],
)
def test_gradients_are_those_of_the_layers_as_written(family, kind, sparing):
    model = lora.prepare_for_training(families.language_model(family), kind, 4, 8, 0.0, "all-linear", sparing).train()
    disable_dropout(model)
    for name, p in model.named_parameters():
        if "lora_B" in name:  # at 0, as it begins, A would have no gradient
            torch.nn.init.normal_(p, std=0.1)
    names, plain = list(model.state_dict()), gradients(model)
    with compiled_layers(model, True):
        assert calls_compiled(model) == 2  # both layers
        assert list(model.state_dict()) == names
        fast = gradients(model)
    assert calls_compiled(model) == 0
    assert plain.keys() == fast.keys() and plain
    for name, expected in plain.items():
        off = (fast[name] - expected).abs().max() / expected.abs().max()  # what rounding does, in 32 bits, is 1e-5
        assert off < 1e-4, name


def test_nothing_is_compiled_unless_it_is_wanted():
    model = families.language_model("qwen2")
    with compiled_layers(model, False):
        assert calls_compiled(model) == 0


def test_a_model_without_layers_that_are_known_is_refused():
    with (
        pytest.raises(MannersError, match="layers of a Linear are not known"),
        compiled_layers(torch.nn.Linear(2, 2), True),
    ):
        pass
