"""The PPO update: clipped policy and value losses over epochs of minibatches (Schulman et al. 2017, equation 7)."""

import math
import random
from dataclasses import dataclass, fields

import torch

from manners.config.schema import OnlineRLConfig
from manners.methods.distributed import ProcessGroup
from manners.methods.ppo.rollout import MicroBatch, Rollout, microbatches
from manners.models.policy import Policy


@dataclass
class PPOStats:
    """Means over the response tokens of a minibatch."""

    policy_loss: float
    value_loss: float
    entropy: float  # nats
    approx_kl: float  # half the squared log-ratio to the sampling policy
    policy_clip_fraction: float  # tokens whose clipped loss is the larger one, as in TRL
    value_clip_fraction: float
    ratio: float  # of the new to the sampling policy's probability

    def __add__(self, other: "PPOStats") -> "PPOStats":
        return PPOStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def as_tensor(self) -> torch.Tensor:
        """(7,) in double precision, on the CPU: Apple's GPU has no doubles."""
        return torch.tensor([getattr(self, f.name) for f in fields(self)], dtype=torch.double)


ZERO_STATS = PPOStats(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
METRIC_NAMES = {  # TRL's
    "policy_loss": "loss/policy_avg",
    "value_loss": "loss/value_avg",
    "entropy": "policy/entropy_avg",
    "approx_kl": "policy/approxkl_avg",
    "policy_clip_fraction": "policy/clipfrac_avg",
    "value_clip_fraction": "val/clipfrac_avg",
    "ratio": "val/ratio",
}


@dataclass
class UpdateStats:
    """What an update did: metrics averaged over its minibatches, and its optimizer steps."""

    metrics: dict[str, float]
    optimizer_steps: int
    stopped_early: bool  # by target_kl


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> torch.Tensor:
    """−min(ρA, clip(ρ, 1 ± ε)A) of each token: (N,), (N,), (N,) → (N,)."""
    ratio = (logprobs - old_logprobs).exp()
    return torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange))


def value_loss(values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange: float) -> torch.Tensor:
    """Half the squared error, or that of the value clipped around the old one if larger: (N,), (N,), (N,) → (N,)."""
    clipped = torch.clamp(values, old_values - cliprange, old_values + cliprange)
    return 0.5 * torch.max((values - returns).square(), (clipped - returns).square())


def update_policy(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    config: OnlineRLConfig,
    shuffle: random.Random,
    pad_token_id: int,
    process_group: ProcessGroup,
) -> UpdateStats:
    """Fit ``policy`` to a rollout with advantages and returns (B, R), over epochs of shuffled minibatches.

    The gradient of a minibatch is the mean over its response tokens in all processes, however they fall into
    microbatches. With ``target_kl`` the update stops before the first minibatch whose approximate KL exceeds it. Raises
    FloatingPointError where the loss or its gradient is not finite.
    """
    policy.train()  # gradient checkpointing needs train mode; dropout is off in any case
    params = [p for group in optimizer.param_groups for p in group["params"]]
    local_batch_size = len(rollout.texts)
    indices = list(range(local_batch_size * process_group.size))
    minibatch_size = math.ceil(len(indices) / config.num_mini_batches)
    history: list[tuple[PPOStats, float]] = []
    for _ in range(config.num_ppo_epochs):
        shuffle.shuffle(indices)
        for start in range(0, len(indices), minibatch_size):
            rows = process_group.local_indices(indices[start : start + minibatch_size], local_batch_size)
            num_tokens = float(process_group.sum(rollout.mask[rows].sum().double()))
            optimizer.zero_grad()
            sums = ZERO_STATS
            with policy.frozen_weights_in_bf16():
                for part in microbatches(rollout, rows, config.microbatch_tokens, pad_token_id):
                    loss, stats = microbatch_loss(policy, rollout, part, advantages, returns, config)
                    (loss / num_tokens).backward()
                    sums = sums + stats
            if process_group.size > 1:
                sum_gradients(params, process_group)
            means = PPOStats(*(process_group.sum(sums.as_tensor()) / num_tokens).tolist())
            grad_norm = float(torch.nn.utils.clip_grad_norm_(params, config.max_grad_norm or math.inf))
            if not math.isfinite(grad_norm + float(means.as_tensor().sum())):
                raise FloatingPointError(f"the loss or its gradient (norm {grad_norm}) is not finite")
            if config.target_kl is not None and means.approx_kl > config.target_kl:
                return update_stats(history, stopped_early=True)
            optimizer.step()
            history.append((means, grad_norm))
    return update_stats(history, stopped_early=False)


def microbatch_loss(
    policy: Policy,
    rollout: Rollout,
    part: MicroBatch,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    config: OnlineRLConfig,
) -> tuple[torch.Tensor, PPOStats]:
    """The loss () and the statistics, summed over the N response tokens of a microbatch."""
    device, mask = policy.model.device, rollout.mask[part.rows]
    old_logprobs, old_values, advantages, returns = (
        table[part.rows][mask].to(device) for table in (rollout.logprobs, rollout.values, advantages, returns)
    )  # (N,) each
    output = policy(part.ids.to(device), part.response_mask.to(device), config.temperature)
    pg_losses = policy_loss(output.logprobs, old_logprobs, advantages, config.cliprange)
    vf_losses = value_loss(output.values, old_values, returns, config.cliprange_value)
    pg_loss, vf_loss = pg_losses.sum(), vf_losses.sum()
    entropy = output.entropy.sum()
    loss = pg_loss + config.vf_coef * vf_loss
    if config.entropy_coef:  # else its gradient, a pass over the vocabulary, is not computed
        loss = loss - config.entropy_coef * entropy
    with torch.no_grad():
        log_ratio = output.logprobs - old_logprobs
        sums = (  # in the order of PPOStats
            pg_loss,
            vf_loss,
            entropy,
            (0.5 * log_ratio.square()).sum(),
            (pg_losses > -advantages * log_ratio.exp()).sum(),
            (vf_losses > 0.5 * (output.values - returns).square()).sum(),
            log_ratio.exp().sum(),
        )
        stats = PPOStats(*torch.stack([value.float() for value in sums]).tolist())  # one transfer from the device
    return loss, stats


def update_stats(history: list[tuple[PPOStats, float]], stopped_early: bool) -> UpdateStats:
    """Means over the minibatches of an update, by TRL's metric names."""
    if not history:
        return UpdateStats({}, 0, stopped_early)
    count = len(history)
    metrics = {
        metric: sum(getattr(stats, name) for stats, _ in history) / count for name, metric in METRIC_NAMES.items()
    }
    metrics["policy/grad_norm"] = sum(norm for _, norm in history) / count
    metrics["val/ratio_first"] = history[0][0].ratio  # exactly 1, or the log-probabilities are wrong
    return UpdateStats(metrics, count, stopped_early)


def sum_gradients(params: list[torch.nn.Parameter], process_group: ProcessGroup) -> None:
    """All-reduce: each process has the gradient of its own rows; they are summed in one message."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
    flat = process_group.sum(torch.cat([g.flatten() for g in grads]))
    for p, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
        p.grad = part.view_as(p)
