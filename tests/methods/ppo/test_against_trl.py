"""Advantages and losses on the same tensors as TRL 1.12's PPOTrainer, the last release that had one.

The reference is written from the papers and from a description of what that trainer does; nothing is imported or
copied. It works on (B, R) tensors that are padded after each reply's EOS:

- rewards: −β·k1 at each token, and the score at the position *after* EOS; only a reply without EOS, which fills the
  row, gets it at its own last token;
- values: kept at one position more than the reply has, so that the position of the score has one;
- advantages: GAE along the whole padded row, then whitened over the response tokens (variance with Bessel's
  correction);
- losses: means over the response tokens of a minibatch; for the value loss over one position more.

Ours differs on purpose for replies with EOS: the score is placed at EOS, which is the last action, and nothing follows
it. So the credit of EOS is not discounted, and no value is learned where no action is taken.
"""

import pytest
import torch

from manners.methods.ppo.advantages import gae, kl_estimate, kl_penalized_rewards, whiten
from manners.methods.ppo.loss import policy_loss, value_loss

BETA, CLIP, CLIP_VALUE, VF = 0.07, 0.2, 0.2, 0.1
WIDTH = 9
LENGTHS = (9, 4, 9, 1, 6)
NO_EOS = torch.tensor([n == WIDTH for n in LENGTHS])


def masked_mean(values, mask):
    return (values * mask).sum() / mask.sum()


class TRLAdvantages:
    """TRL's advantages of a rollout. ``mask`` (B, R) is true for response tokens, ``value_mask`` one position on."""

    def __init__(self, tensors, gamma, lam, lengths=LENGTHS):
        logprobs, ref_logprobs, values, scores, *_ = tensors
        steps = torch.arange(WIDTH).expand(len(lengths), WIDTH)
        ends = torch.tensor(lengths)[:, None]
        self.mask, self.value_mask = steps < ends, steps <= ends
        values = torch.where(self.value_mask, values, 0.0)
        rewards = torch.where(self.mask, -BETA * (logprobs - ref_logprobs), 0.0)
        rewards = rewards + (steps == torch.clamp(ends, max=WIDTH - 1)) * scores[:, None]
        columns, running = [], torch.zeros(len(lengths))
        for t in range(WIDTH - 1, -1, -1):
            next_value = values[:, t + 1] if t < WIDTH - 1 else 0.0
            running = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * running
            columns.insert(0, running)
        self.raw = torch.stack(columns, 1)
        self.returns = self.raw + values
        mean = masked_mean(self.raw, self.mask)
        variance = masked_mean((self.raw - mean) ** 2, self.mask) * self.mask.sum() / (self.mask.sum() - 1)
        self.whitened = torch.where(self.mask, (self.raw - mean) / torch.sqrt(variance + 1e-8), 0.0)


@pytest.fixture
def tensors():
    """Old and reference log-probabilities, values, scores, new log-probabilities, new values."""
    generator = torch.Generator().manual_seed(0)
    logprobs, ref, values, new, steps = (torch.randn(5, WIDTH, generator=generator) for _ in range(5))
    scores = torch.randn(5, generator=generator) * 2
    return -logprobs.abs(), -ref.abs(), values, scores, 0.3 * new - 1, values + steps


def our_advantages(tensors, gamma, lam, mask):
    """Advantages before whitening, and returns."""
    logprobs, ref_logprobs, values, scores, *_ = tensors
    kl = kl_estimate(logprobs, ref_logprobs, "k1") * mask
    advantages = gae(kl_penalized_rewards(scores, kl, mask, BETA), values * mask, mask, gamma, lam)
    return advantages, advantages + values * mask


def whiten_one_process(advantages, mask):
    return whiten(advantages, mask, lambda tensor: tensor)


def trl_policy_loss(old, new, trl):
    ratio = torch.exp(new - old)
    surrogate = torch.minimum(ratio * trl.whitened, torch.clip(ratio, 1 - CLIP, 1 + CLIP) * trl.whitened)
    return -masked_mean(surrogate, trl.mask)


def test_advantages_equal_trls_for_replies_without_eos(tensors):
    trl = TRLAdvantages(tensors, 0.98, 0.95)
    advantages, returns = our_advantages(tensors, 0.98, 0.95, trl.mask)
    assert torch.allclose(advantages[NO_EOS], trl.raw[NO_EOS], atol=1e-5)
    assert torch.allclose(returns[NO_EOS], trl.returns[NO_EOS], atol=1e-5)


def test_advantages_equal_trls_without_discount(tensors):
    """With γ = λ = 1 a return is the sum of all rewards to come, wherever the score is placed."""
    trl = TRLAdvantages(tensors, 1.0, 1.0)
    advantages, _ = our_advantages(tensors, 1.0, 1.0, trl.mask)
    assert torch.allclose(advantages, torch.where(trl.mask, trl.raw, 0.0), atol=1e-5)
    assert torch.allclose(whiten_one_process(advantages, trl.mask), trl.whitened, atol=1e-5)


def test_advantages_differ_from_trls_only_by_the_credit_of_eos(tensors):
    """At EOS TRL has γV' + γλ(score − V') where ours has the score; V' is the value after EOS."""
    gamma, lam = 0.98, 0.9
    trl = TRLAdvantages(tensors, gamma, lam)
    advantages, _ = our_advantages(tensors, gamma, lam, trl.mask)
    assert not torch.allclose(advantages[~NO_EOS], torch.where(trl.mask, trl.raw, 0.0)[~NO_EOS], atol=0.05)
    for row, length in enumerate(LENGTHS):
        if length == WIDTH:
            continue
        score, value_after_eos = tensors[3][row], tensors[2][row, length]
        at_eos = score - (gamma * value_after_eos + gamma * lam * (score - value_after_eos))
        steps_to_eos = torch.arange(length - 1, -1, -1)
        difference = advantages[row, :length] - trl.raw[row, :length]
        assert torch.allclose(difference, at_eos * (gamma * lam) ** steps_to_eos, atol=1e-5)


def test_whiten_equals_trls(tensors):
    trl = TRLAdvantages(tensors, 1.0, 0.95)
    assert torch.allclose(whiten_one_process(trl.raw, trl.mask), trl.whitened, atol=1e-5)


def test_loss_and_gradient_of_a_minibatch_equal_trls(tensors):
    """For replies without EOS, so that values are learned at the same positions."""
    trl = TRLAdvantages(tensors, 1.0, 0.95, (WIDTH,) * 5)
    mask = trl.mask
    old, _, old_values, _, new, new_values = tensors
    new, new_values = new.requires_grad_(), new_values.requires_grad_()

    clipped = old_values + torch.clip(new_values - old_values, -CLIP_VALUE, CLIP_VALUE)
    errors = torch.maximum((new_values - trl.returns) ** 2, (clipped - trl.returns) ** 2)
    trl_loss = trl_policy_loss(old, new, trl) + VF * 0.5 * masked_mean(errors, trl.value_mask)
    trl_gradients = torch.autograd.grad(trl_loss, [new, new_values])

    advantages, returns = our_advantages(tensors, 1.0, 0.95, mask)
    advantages = whiten_one_process(advantages, mask)
    loss = policy_loss(new[mask], old[mask], advantages[mask], CLIP).sum()
    loss = loss + VF * value_loss(new_values[mask], old_values[mask], returns[mask], CLIP_VALUE).sum()
    loss = loss / mask.sum()
    assert loss.item() == pytest.approx(trl_loss.item(), abs=1e-5)
    for gradient, expected in zip(torch.autograd.grad(loss, [new, new_values]), trl_gradients, strict=True):
        assert torch.allclose(gradient, expected, atol=1e-6)
        assert expected.abs().max() > 1e-3


def test_policy_loss_equals_trls_for_replies_with_eos(tensors):
    trl = TRLAdvantages(tensors, 1.0, 1.0)
    old, mask, new = tensors[0], trl.mask, tensors[4]
    loss = policy_loss(new[mask], old[mask], trl.whitened[mask], CLIP).mean()
    assert loss.item() == pytest.approx(trl_policy_loss(old, new, trl).item(), abs=1e-5)
    assert int(trl.value_mask.sum() - mask.sum()) == int((~NO_EOS).sum())  # where only TRL learns a value
