"""Advantages and losses on the same tensors as TRL 1.12's PPOTrainer, the last that had one.

Written anew from the papers and from what that trainer does in words; nothing of it is imported or copied. It works
on (B, R) tables that are padded after each reply's stop token:

- rewards: −β·k1 at each token, and the score at the position *after* the stop token; only where a reply fills the
  table does its own last token get the score.
- values: kept at one position more than the reply has, so that the score's place has one.
- advantages: GAE down the whole padded row, then whitened over the reply's tokens (variance with Bessel's correction).
- losses: means over the reply's tokens of a minibatch; that of the values over one position more.

Ours differs on purpose where a reply ends by itself: the score is paid at the stop token, which is the last action, and
nothing follows it. The stop token's credit is thus undiscounted, and no value is fitted where no action is taken.
"""

import pytest
import torch

from manners.methods.ppo.advantages import gae, kl_estimate, token_rewards, whiten
from manners.methods.ppo.loss import policy_loss, value_loss

BETA, CLIP, CLIP_VALUE, VF = 0.07, 0.2, 0.2, 0.1
WIDTH = 9
LENGTHS = (9, 4, 9, 1, 6)
FULL = torch.tensor([n == WIDTH for n in LENGTHS])


def mean_of(values, mask):
    return (values * mask).sum() / mask.sum()


class TRL:
    """What TRL makes of a rollout. ``real`` are the tokens of the replies, ``valued`` one position more."""

    def __init__(self, logprobs, ref_logprobs, values, scores, lengths, gamma, lam):
        steps = torch.arange(WIDTH).expand(len(lengths), WIDTH)
        ends = torch.tensor(lengths)[:, None]
        self.real, self.valued = steps < ends, steps <= ends
        self.values = torch.where(self.valued, values, 0.0)
        paid_at = torch.clamp(ends, max=WIDTH - 1)
        self.rewards = torch.where(self.real, -BETA * (logprobs - ref_logprobs), 0.0)
        self.rewards = self.rewards + (steps == paid_at) * scores[:, None]
        columns, carried = [], torch.zeros(len(lengths))
        for t in range(WIDTH - 1, -1, -1):
            after = self.values[:, t + 1] if t < WIDTH - 1 else 0.0
            carried = self.rewards[:, t] + gamma * after - self.values[:, t] + gamma * lam * carried
            columns.insert(0, carried)
        raw = torch.stack(columns, 1)
        self.raw, self.returns = raw, raw + self.values
        centre = mean_of(raw, self.real)
        spread = mean_of((raw - centre) ** 2, self.real) * self.real.sum() / (self.real.sum() - 1)
        self.advantages = torch.where(self.real, (raw - centre) / torch.sqrt(spread + 1e-8), 0.0)


@pytest.fixture
def tables():
    draw = torch.Generator().manual_seed(0)
    logprobs, ref, values, new, new_values = (torch.randn(5, WIDTH, generator=draw) for _ in range(5))
    return -logprobs.abs(), -ref.abs(), values, torch.randn(5, generator=draw) * 2, 0.3 * new - 1, values + new_values


def ours(tables, gamma, lam, mask):
    logprobs, ref, values, scores, *_ = tables
    kl = kl_estimate(logprobs, ref, "k1") * mask
    advantages = gae(token_rewards(scores, kl, mask, BETA), values * mask, mask, gamma, lam)
    return advantages, advantages + values * mask


def theirs(tables, gamma, lam, lengths=LENGTHS):
    logprobs, ref, values, scores, *_ = tables
    return TRL(logprobs, ref, values, scores, lengths, gamma, lam)


def test_replies_that_fill_the_table_get_the_very_same_advantages(tables):
    trl = theirs(tables, 0.98, 0.95)
    advantages, returns = ours(tables, 0.98, 0.95, trl.real)
    assert torch.allclose(advantages[FULL], trl.raw[FULL], atol=1e-5)
    assert torch.allclose(returns[FULL], trl.returns[FULL], atol=1e-5)


def test_without_discount_all_replies_do(tables):
    """With γ = λ = 1 a return is the sum of all rewards to come, wherever the last of them is paid."""
    trl = theirs(tables, 1.0, 1.0)
    advantages, _ = ours(tables, 1.0, 1.0, trl.real)
    assert torch.allclose(advantages, torch.where(trl.real, trl.raw, 0.0), atol=1e-5)
    assert torch.allclose(whiten(advantages, trl.real, lambda t: t), trl.advantages, atol=1e-5)


def test_with_discount_only_the_credit_of_the_ending_differs(tables):
    """TRL's last token gets γV' + γλ(score − V') for what ours gets the score, V' being the value after the end."""
    gamma, lam = 0.98, 0.9
    trl = theirs(tables, gamma, lam)
    advantages, _ = ours(tables, gamma, lam, trl.real)
    assert not torch.allclose(advantages[~FULL], torch.where(trl.real, trl.raw, 0.0)[~FULL], atol=0.05)
    for row, length in enumerate(LENGTHS):
        if length == WIDTH:
            continue
        score, after = tables[3][row], tables[2][row, length]
        gap = score - (gamma * after + gamma * lam * (score - after))
        back = torch.arange(length - 1, -1, -1)  # steps before the last
        assert torch.allclose(advantages[row, :length] - trl.raw[row, :length], gap * (gamma * lam) ** back, atol=1e-5)


def test_whitening_is_the_same(tables):
    trl = theirs(tables, 1.0, 0.95)
    assert torch.allclose(whiten(trl.raw, trl.real, lambda t: t), trl.advantages, atol=1e-5)


def test_loss_and_gradient_of_a_minibatch_are_the_same(tables):
    """For replies that fill the table, so that values are fitted at the same places."""
    lengths = (WIDTH,) * 5
    trl = theirs(tables, 1.0, 0.95, lengths)
    old, _, old_values, _, new, new_values = tables
    new, new_values = new.requires_grad_(), new_values.requires_grad_()

    ratio = torch.exp(new - old)
    surrogate = torch.minimum(ratio * trl.advantages, torch.clip(ratio, 1 - CLIP, 1 + CLIP) * trl.advantages)
    held = old_values + torch.clip(new_values - old_values, -CLIP_VALUE, CLIP_VALUE)
    errors = torch.maximum((new_values - trl.returns) ** 2, (held - trl.returns) ** 2)
    loss = -mean_of(surrogate, trl.real) + VF * 0.5 * mean_of(errors, trl.valued)
    wanted = torch.autograd.grad(loss, [new, new_values])

    advantages, returns = ours(tables, 1.0, 0.95, trl.real)
    advantages = whiten(advantages, trl.real, lambda t: t)
    flat = trl.real
    summed = policy_loss(new[flat], old[flat], advantages[flat], CLIP).sum()
    summed = summed + VF * value_loss(new_values[flat], old_values[flat], returns[flat], CLIP_VALUE).sum()
    mine = summed / flat.sum()
    assert mine.item() == pytest.approx(loss.item(), abs=1e-5)
    for found, want in zip(torch.autograd.grad(mine, [new, new_values]), wanted, strict=True):
        assert torch.allclose(found, want, atol=1e-6)
        assert want.abs().max() > 1e-3


def test_replies_that_end_have_the_same_policy_loss_but_no_value_after_their_end(tables):
    trl = theirs(tables, 1.0, 1.0)
    old, new = tables[0], tables[4]
    ratio = torch.exp(new - old)
    surrogate = torch.minimum(ratio * trl.advantages, torch.clip(ratio, 1 - CLIP, 1 + CLIP) * trl.advantages)
    real = trl.real
    assert policy_loss(new[real], old[real], trl.advantages[real], CLIP).mean().item() == pytest.approx(
        -mean_of(surrogate, real).item(), abs=1e-5
    )
    assert int(trl.valued.sum() - real.sum()) == int((~FULL).sum())  # the places where only TRL fits a value
