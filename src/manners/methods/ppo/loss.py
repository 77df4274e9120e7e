"""The update: clipped surrogate and value losses over epochs of minibatches (Schulman et al. 2017, equation 7)."""

import math
import random
from dataclasses import dataclass

import torch

from manners.config.schema import OnlineRLConfig
from manners.methods.distributed import ProcessGroup
from manners.methods.ppo.rollout import MicroBatch, Rollout, micro_batches
from manners.models.policy import Policy

# Sums over tokens, in this order; TRL's names.
STAT_NAMES = (
    "loss/policy_avg",
    "loss/value_avg",
    "policy/entropy_avg",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "val/clipfrac_avg",
    "val/ratio",
)


def policy_loss(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, cliprange: float) -> torch.Tensor:
    """−min(ρA, clip(ρ, 1 ± ε)A) of each token: (N,) in, (N,) out."""
    ratio = (new - old).exp()
    return torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange))


def value_loss(new: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, cliprange: float) -> torch.Tensor:
    """Half the squared error, or that of the value held within ``cliprange`` of the old one if that is worse."""
    clipped = torch.clamp(new, old - cliprange, old + cliprange)
    return 0.5 * torch.max((new - returns).square(), (clipped - returns).square())


@dataclass
class UpdateStats:
    """Means over the tokens of all minibatches, and what became of the update."""

    metrics: dict[str, float]
    steps: int  # optimizer steps
    stopped: bool  # by target_kl


def update_policy(
    actor: Policy,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    settings: OnlineRLConfig,
    shuffle: random.Random,
    pad: int,
    process_group: ProcessGroup,
) -> UpdateStats:
    """Fit ``actor`` to a rollout, by epochs of minibatches whose rows ``shuffle`` deals.

    The gradient of a minibatch is a mean over its tokens in all processes, however they fall into micro-batches. With
    ``target_kl`` the update ends before the first minibatch that finds the policy moved further than that.
    """
    actor.train()  # or gradient checkpointing would do nothing; dropout is off in any case
    params = [p for group in optimizer.param_groups for p in group["params"]]
    held = len(rollout.texts)
    everyone = list(range(held * process_group.size))
    size = math.ceil(len(everyone) / settings.num_mini_batches)
    found: list[torch.Tensor] = []
    for _ in range(settings.num_ppo_epochs):
        shuffle.shuffle(everyone)
        for start in range(0, len(everyone), size):
            rows = process_group.local_indices(everyone[start : start + size], held)
            tokens = float(process_group.sum(rollout.mask[rows].sum().double()))
            optimizer.zero_grad()
            sums = torch.zeros(len(STAT_NAMES), dtype=torch.double)  # on the CPU: Apple's GPU has no doubles
            for part in micro_batches(rollout, rows, settings.micro_batch_tokens, pad):
                loss, measured = microbatch_loss(actor, rollout, part, advantages, returns, settings)
                (loss / tokens).backward()
                sums += measured.cpu().double()
            if process_group.size > 1:
                sum_gradients(params, process_group)
            means = process_group.sum(sums) / tokens
            norm = torch.nn.utils.clip_grad_norm_(params, settings.max_grad_norm or math.inf)
            if not math.isfinite(float(norm + means.sum())):
                raise FloatingPointError(f"the loss or its gradient (norm {float(norm)}) is no finite number")
            if settings.target_kl is not None and means[STAT_NAMES.index("policy/approxkl_avg")] > settings.target_kl:
                return update_stats(found, stopped=True)
            optimizer.step()
            found.append(torch.cat([means, norm.detach().cpu().double()[None]]))
    return update_stats(found, stopped=False)


def microbatch_loss(
    actor: Policy,
    rollout: Rollout,
    part: MicroBatch,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    settings: OnlineRLConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss summed over a micro-batch's tokens, and the sums that ``STAT_NAMES`` lists."""
    device = actor.model.device
    mask = rollout.mask[part.rows]
    old, old_values, adv, ret = (
        table[part.rows][mask].to(device) for table in (rollout.logprobs, rollout.values, advantages, returns)
    )  # (N,) each
    judged = actor.judge(
        part.ids.to(device), part.chosen.to(device), settings.temperature, entropy_grad=settings.entropy_coef > 0
    )
    pg = policy_loss(judged.logprobs, old, adv, settings.cliprange).sum()
    vf = value_loss(judged.values, old_values, ret, settings.cliprange_value).sum()
    entropy = judged.entropy.sum()
    loss = pg + settings.vf_coef * vf - settings.entropy_coef * entropy
    with torch.no_grad():
        moved = judged.logprobs - old
        measured = [
            pg,
            vf,
            entropy,
            (0.5 * moved.square()).sum(),
            ((moved.exp() - 1).abs() > settings.cliprange).sum(),
            ((judged.values - old_values).abs() > settings.cliprange_value).sum(),
            moved.exp().sum(),
        ]
    return loss, torch.stack([m.detach().float() for m in measured])


def update_stats(found: list[torch.Tensor], stopped: bool) -> UpdateStats:
    if not found:
        return UpdateStats({}, 0, stopped)
    means = torch.stack(found).mean(0).tolist()
    metrics = dict(zip((*STAT_NAMES, "policy/grad_norm"), means, strict=True))
    metrics["val/ratio_first"] = float(found[0][STAT_NAMES.index("val/ratio")])  # 1, or the log-probabilities are wrong
    return UpdateStats(metrics, len(found), stopped)


def sum_gradients(params: list[torch.nn.Parameter], process_group: ProcessGroup) -> None:
    """Each process has the gradient of its own rows: add them up, all in one message."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
    flat = process_group.sum(torch.cat([g.flatten() for g in grads]))
    for p, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
        p.grad = part.view_as(p)
