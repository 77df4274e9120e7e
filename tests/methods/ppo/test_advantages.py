"""The arithmetic between scores and loss, against numbers worked out by hand and against sums written out."""

import math
import threading

import pytest
import torch

from manners.methods.ppo.advantages import adapt_kl_coef, gae, kl_estimate, leave_one_out, token_rewards, whiten

LN2 = math.log(2)
LENGTHS = (5, 1, 8, 3)


def alone(tensor):
    return tensor


def masked(lengths=LENGTHS, beyond=0):
    width = max(lengths) + beyond
    return torch.tensor([[t < n for t in range(width)] for n in lengths])


def noise(seed, mask, where_padded=0.0):
    values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(mask, values, torch.full_like(values, where_padded))


# --- KL estimators ---


def test_estimates_of_a_token_by_hand():
    policy, reference = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    for kind, twice_as_likely, half_as_likely in (
        ("k1", LN2, -LN2),
        ("k2", LN2**2 / 2, LN2**2 / 2),
        ("k3", 0.5 - 1 + LN2, 2 - 1 - LN2),
    ):
        assert kl_estimate(policy, reference, kind).tolist() == pytest.approx([twice_as_likely, half_as_likely])


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    """200,000 tokens drawn from the policy, against the exact KL of two distributions over four tokens."""
    p, q = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.2, 0.3, 0.1, 0.4])
    exact = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    tokens = torch.multinomial(p, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    found = {k: kl_estimate(p.log()[tokens].double(), q.log()[tokens].double(), k) for k in ("k1", "k2", "k3")}
    error = {k: abs(float(v.mean()) - exact) / float(v.std() / len(tokens) ** 0.5) for k, v in found.items()}
    assert error["k1"] < 3 and error["k3"] < 3
    assert error["k2"] > 10
    assert found["k3"].min() >= 0 > found["k1"].min()


# --- Rewards ---


def test_the_score_is_paid_at_the_last_token_whether_it_stops_the_reply_or_the_limit_does():
    mask = masked((2, 4))  # the first ends at its stop token, the second is cut off
    kl = torch.tensor([[0.5, -0.25, 0.0, 0.0], [1.0, 0.0, 0.0, 2.0]])
    paid = token_rewards(torch.tensor([3.0, -1.0]), kl, mask, kl_coef=0.1)
    assert torch.allclose(paid, torch.tensor([[-0.05, 3.025, 0.0, 0.0], [-0.1, 0.0, 0.0, -1.2]]))


def test_the_rewards_of_a_reply_add_up_to_its_score_less_the_price_of_its_kl():
    mask = masked()
    kl, scores = noise(0, mask), torch.tensor([1.0, 2.0, 3.0, 4.0])
    paid = token_rewards(scores, kl, mask, 0.3)
    assert torch.allclose(paid.sum(1), scores - 0.3 * kl.sum(1))


# --- Advantages ---


def double_sum(rewards, values, gamma, lam):
    """Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t, for each t of one reply."""
    last = len(rewards) - 1
    delta = [r + (gamma * values[t + 1] if t < last else 0.0) - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, last + 1)) for t in range(last + 1)]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_advantages_are_the_double_sum_of_the_paper(gamma, lam):
    mask = masked()
    rewards, values = noise(0, mask), noise(1, mask)
    found = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(LENGTHS):
        wanted = double_sum(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert found[row, :length].tolist() == pytest.approx(wanted, abs=1e-5)
        assert not found[row, length:].any()


def test_advantages_of_two_tokens_by_hand():
    found = gae(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.5]]), masked((2,)), gamma=0.9, lam=0.5)
    # δ = 1 + 0.9·1.5 − 0.5 = 1.85 and 2 − 1.5 = 0.5; A = 1.85 + 0.45·0.5 and 0.5
    assert found[0].tolist() == pytest.approx([2.075, 0.5])


def test_padding_never_matters():
    """However much of it there is, and whatever stands in it."""
    narrow, wide = masked(), masked(beyond=3)
    scores = torch.tensor([1.0, -1.0, 0.5, 2.0])

    def everything(mask, garbage):
        kl, values = torch.zeros(mask.shape), torch.zeros(mask.shape)
        kl[:, :8], values[:, :8] = noise(0, narrow), noise(1, narrow)
        kl[~mask], values[~mask] = garbage, -garbage
        paid = token_rewards(scores, kl, mask, 0.1)
        advantages = gae(torch.where(mask, paid, garbage), values, mask, 0.99, 0.9)
        white = whiten(torch.where(mask, advantages, garbage), mask, alone)
        return paid, advantages, white

    for clean, dirty in zip(everything(narrow, 0.0), everything(wide, 1e6), strict=True):
        assert torch.equal(clean, dirty[:, :8])
        assert not dirty[~wide].any()


# --- Whitening ---


def by_numpy(values, mask, shift_mean):
    real = values[mask].double().numpy()
    white = (real - real.mean()) / real.std(ddof=1)
    return white if shift_mean else white + real.mean()


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_is_that_of_the_real_tokens(shift_mean):
    mask = masked()
    values = 7 + 3 * noise(0, mask, where_padded=100.0)
    white = whiten(values, mask, alone, shift_mean)
    assert white[mask].tolist() == pytest.approx(by_numpy(values, mask, shift_mean), abs=1e-5)
    assert not white[~mask].any()


class Meeting:
    """Two threads that add their tensors, as two processes would."""

    def __init__(self):
        self.barrier, self.given = threading.Barrier(2, timeout=20), [None, None]

    def adder(self, rank):
        def add(tensor):
            self.given[rank] = tensor
            self.barrier.wait()
            total = self.given[0] + self.given[1]
            self.barrier.wait()
            return total

        return add


@pytest.mark.parametrize("shift_mean", [True, False])
def test_two_processes_whiten_as_one(shift_mean):
    mask = masked()
    values = 7 + 3 * noise(0, mask)
    values[2] += 20  # the halves differ in mean and spread
    meeting, halves = Meeting(), [None, None]

    def work(rank):
        rows = slice(2 * rank, 2 * rank + 2)
        halves[rank] = whiten(values[rows], mask[rows], meeting.adder(rank), shift_mean)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.cat(halves)[mask].tolist() == pytest.approx(by_numpy(values, mask, shift_mean), abs=1e-5)


def test_equal_values_whiten_to_nothing_and_not_to_infinity():
    mask = masked((2, 1))
    assert not whiten(torch.full(mask.shape, 5.0), mask, alone).any()
    assert not whiten(torch.full((1, 1), 5.0), masked((1,)), alone).any()


# --- RLOO, adaptive KL ---


def test_leave_one_out_by_hand():
    scores = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0])  # two prompts, three replies each
    assert leave_one_out(scores, 3).tolist() == pytest.approx([-3.0, -1.5, 4.5, -1.5, -1.5, 3.0])


def test_siblings_balance_and_other_prompts_do_not_count():
    scores = torch.randn(12, generator=torch.Generator().manual_seed(0))
    found = leave_one_out(scores, 4)
    assert found.view(3, 4).sum(1).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    moved = scores.clone()
    moved[:4] += 100
    assert torch.allclose(leave_one_out(moved, 4), found, atol=1e-4)


@pytest.mark.parametrize(
    "kl, wanted",
    [
        (6.6, 0.05 * (1 + 0.1 * 64 / 1000)),  # a tenth too much
        (5.4, 0.05 * (1 - 0.1 * 64 / 1000)),
        (6.0, 0.05),
        (60.0, 0.05 * (1 + 0.2 * 64 / 1000)),  # held at a fifth
        (-3.0, 0.05 * (1 - 0.2 * 64 / 1000)),
    ],
)
def test_the_price_of_kl_follows_the_kl(kl, wanted):
    assert adapt_kl_coef(0.05, kl, target=6.0, horizon=1000, episodes=64) == pytest.approx(wanted)


def test_the_price_settles_where_the_kl_meets_its_target():
    """A policy whose KL is 1/β: the kl_coef must go to where that is the target, and stay."""
    kl_coef = 1.0
    for _ in range(3000):
        kl_coef = adapt_kl_coef(kl_coef, 1 / kl_coef, target=6.0, horizon=1000, episodes=64)
    assert 1 / kl_coef == pytest.approx(6.0, rel=1e-3)
