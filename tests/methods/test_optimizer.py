"""The optimizers: the 8-bit one walks nearly where AdamW walks, and takes up again where it was."""

import pytest
import torch

from manners.methods.optim import adamw


def walk(optim, steps, state=None, start=None):
    """Down a bowl, from a start that both optimizers share."""
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


def test_plain_adamw_is_torchs_own():
    first, _ = walk("adamw_torch_fused", 1)
    torch.manual_seed(0)
    start = torch.randn(64, 128)
    by_hand = start * (1 - 1e-2 * 0.01) - 1e-2 * torch.sign(start - 1.0)  # a first step is as long as the rate
    assert torch.allclose(first, by_hand, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_eight_bits_come_near_and_keep_their_state_in_bytes():
    exact, _ = walk("adamw_torch_fused", 100)
    coarse, optimizer = walk("paged_adamw_8bit", 100)
    assert (exact - coarse).abs().mean() < 0.02 * (exact - walk("adamw_torch_fused", 0)[0]).abs().mean()
    (state,) = optimizer.state.values()
    assert {v.dtype for v in state.values() if torch.is_tensor(v) and v.numel() == 64 * 128} == {torch.uint8}


@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_eight_bits_go_on_from_their_state_to_the_same_numbers():
    whole, _ = walk("paged_adamw_8bit", 20)
    half, state = walk("paged_adamw_8bit", 10)
    assert torch.equal(walk("paged_adamw_8bit", 10, state, half)[0], whole)
