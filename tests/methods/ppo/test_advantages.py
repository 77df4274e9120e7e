"""KL estimates, token rewards, GAE, whitening and RLOO, against numbers by hand and sums written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manners.methods.ppo.advantages import (
    adapt_kl_coef,
    explained_variance,
    gae,
    kl_estimate,
    kl_penalized_rewards,
    leave_one_out,
    normalize_by_std,
    whiten,
)
from tests.methods.ppo.threads import run_in_threads

LN2 = math.log(2)
LENGTHS = (5, 1, 8, 3)


def one_process(tensor):
    return tensor


def make_mask(lengths=LENGTHS, padding=0):
    width = max(lengths) + padding
    return torch.tensor([[t < n for t in range(width)] for n in lengths])


def random_values(seed, mask, where_padded=0.0):
    values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(mask, values, torch.full_like(values, where_padded))


# --- KL estimators ---


def test_kl_estimate_by_hand():
    policy, reference = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    for kind, twice_as_likely, half_as_likely in (
        ("k1", LN2, -LN2),
        ("k2", LN2**2 / 2, LN2**2 / 2),
        ("k3", 0.5 - 1 + LN2, 2 - 1 - LN2),
    ):
        assert kl_estimate(policy, reference, kind).tolist() == pytest.approx([twice_as_likely, half_as_likely])


def test_kl_estimate_is_unbiased_for_k1_and_k3_only():
    """200,000 tokens sampled from the policy, against the exact KL of two distributions over four tokens."""
    p, q = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.2, 0.3, 0.1, 0.4])
    exact = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    tokens = torch.multinomial(p, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    estimates = {k: kl_estimate(p.log()[tokens].double(), q.log()[tokens].double(), k) for k in ("k1", "k2", "k3")}
    z = {k: abs(float(v.mean()) - exact) / float(v.std() / len(tokens) ** 0.5) for k, v in estimates.items()}
    assert z["k1"] < 3 and z["k3"] < 3
    assert z["k2"] > 10
    assert estimates["k3"].min() >= 0 > estimates["k1"].min()


# --- Token rewards ---


def test_token_rewards_put_the_score_at_the_last_token():
    mask = make_mask((2, 4))  # the first reply ends with EOS, the second at the limit
    kl = torch.tensor([[0.5, -0.25, 0.0, 0.0], [1.0, 0.0, 0.0, 2.0]])
    rewards = kl_penalized_rewards(torch.tensor([3.0, -1.0]), kl, mask, kl_coef=0.1)
    assert torch.allclose(rewards, torch.tensor([[-0.05, 3.025, 0.0, 0.0], [-0.1, 0.0, 0.0, -1.2]]))


def test_token_rewards_sum_to_score_minus_kl_penalty():
    mask = make_mask()
    kl, scores = random_values(0, mask), torch.tensor([1.0, 2.0, 3.0, 4.0])
    rewards = kl_penalized_rewards(scores, kl, mask, 0.3)
    assert torch.allclose(rewards.sum(1), scores - 0.3 * kl.sum(1))


# --- Advantages ---


def gae_as_double_sum(rewards, values, gamma, lam):
    """Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t, for each t of one reply."""
    last = len(rewards) - 1
    delta = [r + (gamma * values[t + 1] if t < last else 0.0) - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, last + 1)) for t in range(last + 1)]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_equals_the_double_sum_of_the_paper(gamma, lam):
    mask = make_mask()
    rewards, values = random_values(0, mask), random_values(1, mask)
    advantages = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(LENGTHS):
        expected = gae_as_double_sum(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-5)
        assert not advantages[row, length:].any()


def test_gae_of_two_tokens_by_hand():
    advantages = gae(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.5]]), make_mask((2,)), gamma=0.9, lam=0.5)
    # δ = 1 + 0.9·1.5 − 0.5 = 1.85 and 2 − 1.5 = 0.5; A = 1.85 + 0.45·0.5 and 0.5
    assert advantages[0].tolist() == pytest.approx([2.075, 0.5])


def test_padding_changes_no_advantage():
    """Whatever its width and contents."""
    narrow, wide = make_mask(), make_mask(padding=3)
    scores = torch.tensor([1.0, -1.0, 0.5, 2.0])

    def compute(mask, garbage):
        kl, values = torch.zeros(mask.shape), torch.zeros(mask.shape)
        kl[:, :8], values[:, :8] = random_values(0, narrow), random_values(1, narrow)
        kl[~mask], values[~mask] = garbage, -garbage
        rewards = kl_penalized_rewards(scores, kl, mask, 0.1)
        advantages = gae(torch.where(mask, rewards, garbage), values, mask, 0.99, 0.9)
        whitened = whiten(torch.where(mask, advantages, garbage), mask, one_process)
        return rewards, advantages, whitened

    for clean, padded in zip(compute(narrow, 0.0), compute(wide, 1e6), strict=True):
        assert torch.equal(clean, padded[:, :8])
        assert not padded[~wide].any()


# --- Whitening ---


def whiten_by_numpy(values, mask, shift_mean):
    real = values[mask].double().numpy()
    whitened = (real - real.mean()) / real.std(ddof=1)
    return whitened if shift_mean else whitened + real.mean()


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_normalizes_over_the_unmasked_tokens(shift_mean):
    mask = make_mask()
    values = 7 + 3 * random_values(0, mask, where_padded=100.0)
    whitened = whiten(values, mask, one_process, shift_mean)
    assert whitened[mask].tolist() == pytest.approx(whiten_by_numpy(values, mask, shift_mean), abs=1e-5)
    assert not whitened[~mask].any()


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_in_two_processes_equals_one(shift_mean):
    mask = make_mask()
    values = 7 + 3 * random_values(0, mask)
    values[2] += 20  # the halves differ in mean and spread

    def work(rank, reduce):
        rows = slice(2 * rank, 2 * rank + 2)
        return whiten(values[rows], mask[rows], reduce, shift_mean)

    whitened = torch.cat(run_in_threads(work))
    assert whitened[mask].tolist() == pytest.approx(whiten_by_numpy(values, mask, shift_mean), abs=1e-5)


def test_whiten_of_equal_values_is_zero():
    mask = make_mask((2, 1))
    assert not whiten(torch.full(mask.shape, 5.0), mask, one_process).any()
    assert not whiten(torch.full((1, 1), 5.0), make_mask((1,)), one_process).any()


# --- Explained variance ---


def test_explained_variance_equals_that_of_numpy():
    mask = make_mask()
    values, returns = random_values(0, mask, 1e6), 5 + 2 * random_values(1, mask, -1e6)
    values = values + returns / 3
    real, errors = (table[mask].double().numpy() for table in (returns, returns - values))
    expected = 1 - errors.var() / real.var()
    assert explained_variance(values, returns, mask, one_process) == pytest.approx(expected)
    halves = [slice(0, 2), slice(2, 4)]
    in_two = run_in_threads(
        lambda rank, reduce: explained_variance(*(t[halves[rank]] for t in (values, returns, mask)), reduce)
    )
    assert in_two == pytest.approx([expected, expected])


def test_explained_variance_of_a_perfect_and_a_constant_critic():
    mask = make_mask()
    returns = random_values(0, mask)
    assert explained_variance(returns + 7, returns, mask, one_process) == pytest.approx(1)  # a shift is no variance
    assert explained_variance(torch.full_like(returns, 3.0), returns, mask, one_process) == pytest.approx(0, abs=1e-12)
    assert math.isnan(explained_variance(returns, torch.ones_like(returns), mask, one_process))


# --- RLOO, adaptive KL ---


def test_leave_one_out_by_hand():
    scores = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0])  # two prompts, three replies each
    assert leave_one_out(scores, 3).tolist() == pytest.approx([-3.0, -1.5, 4.5, -1.5, -1.5, 3.0])


def test_leave_one_out_sums_to_zero_within_each_prompt():
    scores = torch.randn(12, generator=torch.Generator().manual_seed(0))
    advantages = leave_one_out(scores, 4)
    assert advantages.view(3, 4).sum(1).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    shifted = scores.clone()
    shifted[:4] += 100  # a constant for all replies to a prompt changes nothing
    assert torch.allclose(leave_one_out(shifted, 4), advantages, atol=1e-4)


def trls_advantages(scores, per_prompt):
    """As TRL 1.16's RLOOTrainer computes them with normalize_advantages=True."""
    grouped = scores.view(-1, per_prompt)
    counts = (~torch.isnan(grouped)).sum(dim=1, keepdim=True)
    baselines = ((torch.nansum(grouped, dim=1, keepdim=True) - grouped) / (counts - 1)).view(-1)
    advantages = scores - baselines
    real = advantages[~advantages.isnan()]
    return torch.nan_to_num((advantages - real.mean()) / (real.std() + 1e-4), nan=0.0)


@pytest.mark.parametrize("missing", [[], [2], [0, 1, 2], [4, 5, 6, 7], [0, 1, 2, 4, 5, 6, 7]])
def test_normalized_leave_one_out_equals_trls(missing):
    """Replies that have no score, and one without a scored sibling, have an advantage of 0."""
    scores = torch.randn(12, generator=torch.Generator().manual_seed(0))
    scores[missing] = math.nan
    advantages = normalize_by_std(leave_one_out(scores, 4), one_process)
    assert torch.allclose(advantages, trls_advantages(scores, 4), atol=1e-4)
    assert not advantages[missing].any()


@given(st.lists(st.floats(-50, 50, width=32), min_size=8, max_size=8), st.floats(-50, 50, width=32))
@settings(max_examples=50, deadline=None)
def test_equal_siblings_keep_an_advantage_of_zero(scores, same):
    """Whatever the replies to other prompts score."""
    advantages = normalize_by_std(leave_one_out(torch.tensor([same] * 4 + scores), 4), one_process)
    assert advantages[:4].abs().max() < 1e-2
    assert advantages.isfinite().all()


def test_normalize_by_std_in_two_processes_equals_one():
    advantages = leave_one_out(torch.randn(8, generator=torch.Generator().manual_seed(1)), 4)
    halves = run_in_threads(lambda rank, reduce: normalize_by_std(advantages[4 * rank : 4 * rank + 4], reduce))
    assert torch.allclose(torch.cat(halves), normalize_by_std(advantages, one_process))
    assert not normalize_by_std(torch.tensor([math.nan] * 4), one_process).any()


@pytest.mark.parametrize(
    "kl, expected",
    [
        (6.6, 0.05 * (1 + 0.1 * 64 / 1000)),  # a tenth too much
        (5.4, 0.05 * (1 - 0.1 * 64 / 1000)),
        (6.0, 0.05),
        (60.0, 0.05 * (1 + 0.2 * 64 / 1000)),  # the error is clipped at a fifth
        (-3.0, 0.05 * (1 - 0.2 * 64 / 1000)),
    ],
)
def test_adapt_kl_coef_follows_the_clipped_error(kl, expected):
    assert adapt_kl_coef(0.05, kl, target=6.0, horizon=1000, episodes=64) == pytest.approx(expected)


def test_adapt_kl_coef_converges_to_the_target():
    """For a policy whose KL is 1/β, β goes to where that is the target, and stays there."""
    kl_coef = 1.0
    for _ in range(3000):
        kl_coef = adapt_kl_coef(kl_coef, 1 / kl_coef, target=6.0, horizon=1000, episodes=64)
    assert 1 / kl_coef == pytest.approx(6.0, rel=1e-3)
