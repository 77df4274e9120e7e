"""The optimizers and their learning-rate schedule."""

import math
from functools import partial

import pytest
import torch

from manners.methods.optim import adamw, learning_rate_factor


def minimize(optim, steps, state=None, start=None):
    """Weights after ``steps`` on a quadratic loss, from a start that both optimizers share; and the optimizer."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(64, 128) if start is None else start.clone())
    optimizer = adamw([{"params": [p], "weight_decay": 0.01}], optim, lr=1e-2)
    if state:
        optimizer.load_state_dict(state.state_dict())
    for _ in range(steps):
        optimizer.zero_grad()
        ((p - 1.0) ** 2).sum().backward()
        optimizer.step()
    return p.detach(), optimizer


def test_adamw_first_step_has_the_length_of_the_rate():
    weights, _ = minimize("adamw_torch_fused", 1)
    torch.manual_seed(0)
    start = torch.randn(64, 128)
    expected = start * (1 - 1e-2 * 0.01) - 1e-2 * torch.sign(start - 1.0)
    assert torch.allclose(weights, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_8bit_adamw_is_close_and_keeps_its_states_in_bytes():
    exact, _ = minimize("adamw_torch_fused", 100)
    quantized, optimizer = minimize("paged_adamw_8bit", 100)
    distance = (exact - minimize("adamw_torch_fused", 0)[0]).abs().mean()
    assert (exact - quantized).abs().mean() < 0.02 * distance
    (state,) = optimizer.state.values()
    assert {v.dtype for v in state.values() if torch.is_tensor(v) and v.numel() == 64 * 128} == {torch.uint8}


@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_8bit_adamw_resumes_from_its_state_to_the_same_weights():
    uninterrupted, _ = minimize("paged_adamw_8bit", 20)
    half, state = minimize("paged_adamw_8bit", 10)
    assert torch.equal(minimize("paged_adamw_8bit", 10, state, half)[0], uninterrupted)


def test_learning_rate_rises_then_falls_to_zero():
    cosine, linear = (partial(learning_rate_factor, kind, warmup=4, total=104) for kind in ("cosine", "linear"))
    assert [cosine(s) for s in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert cosine(4) == linear(4) == 1.0
    assert cosine(54) == pytest.approx(0.5)  # half-way
    assert cosine(29) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert linear(29) == pytest.approx(0.75)
    assert cosine(104) == pytest.approx(0.0)
    assert linear(104) == pytest.approx(0.0)
    assert learning_rate_factor("constant", 9, warmup=0, total=10) == 1.0
