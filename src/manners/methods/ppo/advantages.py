"""From scores to advantages: plain tensor arithmetic, no model.

Tensors are (B, R): B replies of up to R tokens, with a boolean ``mask`` of the real ones. The stop token of a reply is
one of its tokens: an action like any other, at which the score is placed.
"""

import math
from collections.abc import Callable

import torch

Reduce = Callable[[torch.Tensor], torch.Tensor]  # sums a tensor over all processes


def kl_estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, kind: str) -> torch.Tensor:
    """KL(policy ‖ reference) of each sampled token in nats: (B, R), (B, R) → (B, R).

    Schulman's k1, k2 or k3 (joschu.net/blog/kl-approx).

    With log r = log π_ref − log π: k1 = −log r is unbiased and may be negative; k2 = (log r)²/2 is biased and small in
    variance; k3 = r − 1 − log r is unbiased and never negative. As a penalty in the reward only k1 has the gradient of
    the reverse KL (A Comedy of Estimators, arXiv 2512.21852), so the others are metrics.
    """
    log_ratio = ref_logprobs - logprobs
    if kind == "k1":
        return -log_ratio
    return log_ratio.square() / 2 if kind == "k2" else log_ratio.exp() - 1 - log_ratio


def kl_penalized_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """−β·KL (B, R) at every token, plus the score (B,) at the last: (B, R). Ziegler et al. 2019, equation 2."""
    rewards = -kl_coef * kl * mask
    last = mask.sum(1) - 1
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


def gae(rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float) -> torch.Tensor:
    """Generalized advantages (B, R); the value after the last token is 0. Schulman et al. 2016, equation 16."""
    values = values * mask
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(running)
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = (delta + gamma * lam * running) * mask[:, t]
        advantages[:, t] = running
    return advantages


def whiten(values: torch.Tensor, mask: torch.Tensor, reduce: Reduce, shift_mean: bool = True) -> torch.Tensor:
    """Scale (B, R) to variance 1 over the real tokens of all processes, and shift to mean 0; 0 where masked."""
    real = values[mask].double()
    total, count = reduce(torch.stack([real.sum(), real.new_tensor(real.numel())]))
    mean = total / count.clamp(min=1)
    squares = reduce((real - mean).square().sum())
    scaled = (values - mean) * torch.rsqrt(squares / (count - 1).clamp(min=1) + 1e-8)
    return ((scaled if shift_mean else scaled + mean) * mask).to(values.dtype)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, reduce: Reduce) -> float:
    """1 − Var(returns − values) / Var(returns) over the real tokens of all processes: (B, R), (B, R), (B, R).

    1 for a perfect critic; 0 for one that says no more than a constant would; NaN where all returns are equal.
    """
    real = returns[mask].double()
    errors = real - values[mask]
    count = real.new_tensor(float(real.numel()))
    sums = reduce(torch.stack([count, real.sum(), errors.sum(), real.square().sum(), errors.square().sum()]))
    mean, mean_error, mean_square, mean_square_error = (sums[1:] / sums[0]).tolist()
    variance = mean_square - mean**2
    return 1 - (mean_square_error - mean_error**2) / variance if variance > 1e-12 else math.nan


def leave_one_out(scores: torch.Tensor, per_prompt: int) -> torch.Tensor:
    """RLOO: each score less the mean of the other replies to its prompt, (B,) → (B,).

    Ahmadian et al. 2024, arXiv 2402.14740, equation 8. Replies to a prompt stand next to each other. A NaN is no score:
    its advantage is NaN, and so is that of a reply without a scored sibling.
    """
    groups = scores.view(-1, per_prompt)
    num_scored = (~groups.isnan()).sum(1, keepdim=True)
    others = (groups.nansum(1, keepdim=True) - groups) / (num_scored - 1)
    return (groups - others).flatten()


def normalize_by_std(advantages: torch.Tensor, reduce: Reduce) -> torch.Tensor:
    """Leave-one-out advantages (B,) over their standard deviation in all processes, as TRL's normalize_advantages.

    Their mean is 0, so nothing is shifted: a reply as good as the others keeps an advantage of 0. NaN becomes 0.
    """
    real = advantages[~advantages.isnan()].double()
    squares, count = reduce(torch.stack([real.square().sum(), real.new_tensor(real.numel())]))
    std = (squares / (count - 1).clamp(min=1)).sqrt()
    return (advantages / (std + 1e-4)).nan_to_num(0.0).to(advantages.dtype)


def adapt_kl_coef(kl_coef: float, kl: float, target: float, horizon: int, episodes: int) -> float:
    """β, raised where the KL per reply is above ``target`` nats, lowered below. Ziegler et al. 2019, section 2.2."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon)
