"""PPO and RLOO: rollout → score → advantages → update, an iteration at a time.

Everything random derives from (seed, iteration): which prompts, which tokens are drawn, how minibatches are dealt. So
a run that was killed goes on to the same weights, and two processes do what one would.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from manners.config.schema import OnlineRLConfig, PPOConfig, RLOOConfig
from manners.data.types import Prompt
from manners.errors import MannersError
from manners.methods.distributed import ProcessGroup
from manners.methods.lightning import schedule
from manners.methods.lightning_fit import progress_bar
from manners.methods.optim import adamw
from manners.methods.ppo import diagnostics
from manners.methods.ppo.advantages import adapt_kl_coef, gae, kl_estimate, leave_one_out, token_rewards, whiten
from manners.methods.ppo.checkpoint import (
    TrainerState,
    load_best_policy,
    load_checkpoint,
    save_best_policy,
    save_checkpoint,
    stop_if_requested,
)
from manners.methods.ppo.loss import update_policy
from manners.methods.ppo.rollout import Rollout, encode_prompts, rollout, sample_table
from manners.models.generation_backend import Backend, Sampling
from manners.models.policy import Policy
from manners.rewards import combine
from manners.runtime import signals

Log = Callable[[dict[str, float], int], None]
Table = Callable[[list[dict[str, Any]], str], None]


@dataclass(frozen=True)
class PPOTrainer:
    """Who plays, what is paid for, and the rules."""

    actor: Policy
    tokenizer: PreTrainedTokenizerBase
    stops: list[int]
    parts: dict[str, combine.RewardComponent]
    settings: OnlineRLConfig
    seed: int
    process_group: ProcessGroup
    engine: Backend | None = None  # samples where settings.generation_backend is vllm
    optim: str = "adamw_torch_fused"

    def roll(self, prompts: list[Prompt], draws: torch.Tensor | None) -> Rollout:
        """Sampled replies to the prompts where there are ``draws``, the likeliest ones where there are none."""
        s = self.settings
        temperature = 0.0 if draws is None else s.temperature
        pad = self.tokenizer.pad_token_id
        sampling = Sampling(s.response_length, tuple(self.stops), pad, temperature, self.engine or s.generation_backend)
        ids = encode_prompts(prompts, self.tokenizer, s.max_prompt_length)
        return rollout(self.actor, self.tokenizer, prompts, ids, sampling, draws, s.micro_batch_tokens)


@dataclass
class PPOResult:
    iterations: int
    best_iteration: int
    best_reward: float  # on held-out prompts
    resumed_from: int  # 0 for a run that was never interrupted


def train_ppo(
    game: PPOTrainer,
    prompts: list[Prompt],
    held_out: list[Prompt],
    folder: Path,
    log: Log,
    table: Table,
    say: Callable[[str], None],
) -> PPOResult:
    """Train the actor in place; it ends with the weights that scored best on ``held_out``.

    ``folder`` keeps the last checkpoint and the best weights. Raises MannersError, with the batch saved, where a
    number breaks. Told to stop, it saves itself first.
    """
    s, process_group = game.settings, game.process_group
    optimizer = make_optimizer(game.actor, s, game.optim)
    iterations = -(-s.total_episodes // s.batch_size)
    state = load_checkpoint(folder, game.actor, optimizer) or TrainerState(kl_coef=s.kl_coef)
    resumed_from = state.iteration
    with signals.defer_signals(), IterationBar(iterations, state.iteration, process_group.rank == 0) as bar:
        if state.iteration == 0:
            log(evaluate_policy(game, held_out, folder, state), 0)
        while state.iteration < iterations:
            factor = schedule(s.lr_scheduler_type, 0, iterations)(state.iteration)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            metrics, samples, texts = training_step(game, prompts, optimizer, state, folder)
            log(metrics | {"lr": s.learning_rate * factor}, state.iteration)
            bar.show(state.iteration, metrics)
            for warning in state.collapse.watch(metrics["objective/scores"], metrics["objective/length"], texts):
                say(f"iteration {state.iteration}: {warning}")
            if state.iteration % s.log_samples_steps == 0:
                table(samples, f"rollouts/{state.iteration:05d}.json")
            if state.iteration % s.eval_steps == 0 or state.iteration == iterations:
                log(evaluate_policy(game, held_out, folder, state), state.iteration)
            if state.iteration % s.save_steps == 0 and process_group.rank == 0:
                save_checkpoint(folder, state, game.actor, optimizer)
            stop_if_requested(folder, state, game.actor, optimizer, process_group)
    load_best_policy(folder, game.actor)
    return PPOResult(iterations, state.best_iteration, state.best_reward, resumed_from)


def training_step(
    game: PPOTrainer, prompts: list[Prompt], optimizer: torch.optim.Optimizer, state: TrainerState, folder: Path
) -> tuple[dict[str, float], list[dict[str, Any]], list[str]]:
    """One iteration: its metrics, a table of its first replies, and all its replies."""
    s, seed, process_group = game.settings, game.seed, game.process_group
    rows = process_group.shard(pick_prompts(len(prompts), s, seed, state.iteration))
    draws = torch.tensor(process_group.shard(sampling_uniforms(s, seed, state.iteration).tolist()))
    rolled = game.roll([prompts[r] for r in rows], draws)
    try:
        scores, part_scores = score_replies(rolled, game.parts, s)
        advantages, returns, kl = compute_advantages(rolled, scores, s, state.kl_coef, process_group)
        shuffle = random.Random(f"{seed}/{state.iteration}/minibatches")
        stop_if_requested(folder, state, game.actor, optimizer, process_group)  # nothing has changed them yet
        updated = update_policy(
            game.actor, optimizer, rolled, advantages, returns, s, shuffle, game.tokenizer.pad_token_id, process_group
        )
    except FloatingPointError as error:
        raise nonfinite_error(rolled, folder, state.iteration + 1, error) from None
    metrics = rollout_metrics(rolled, scores, part_scores, kl, state.kl_coef, process_group) | updated.metrics
    state.iteration += 1
    if s.adaptive_kl:
        state.kl_coef = adapt_kl_coef(state.kl_coef, metrics["objective/kl"], s.kl_target, s.kl_horizon, s.batch_size)
    metrics |= {
        "episode": float(state.iteration * s.batch_size),
        "policy/optimizer_steps": float(updated.steps),
        "policy/stopped": float(updated.stopped),
    }
    return metrics, sample_table(rolled, part_scores, kl.sum(1), s.log_samples), rolled.texts


def nonfinite_error(rolled: Rollout, folder: Path, iteration: int, error: FloatingPointError) -> MannersError:
    """What to tell, with the batch kept for the one who must find out why."""
    file = diagnostics.dump_batch(rolled, folder, str(error))
    return MannersError(
        f"iteration {iteration}: {error}. The batch is in {file}. Try a lower method.learning_rate or a "
        "method.target_kl; the same command goes on from the last checkpoint."
    )


def score_replies(
    rolled: Rollout, parts: dict[str, combine.RewardComponent], s: OnlineRLConfig
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """The score (B,) of each reply, and what each part of the reward gave it."""
    sums, part_scores = combine.combine_rewards(
        parts, rolled.prompts, rolled.texts, rolled.reply_ids, rolled.ended.tolist()
    )
    scores = torch.tensor(sums)
    if s.reward_clip is not None:
        scores = scores.clamp(-s.reward_clip, s.reward_clip)
    return scores - s.missing_eos_penalty * ~rolled.ended, part_scores


def compute_advantages(
    rolled: Rollout, scores: torch.Tensor, s: OnlineRLConfig, kl_coef: float, process_group: ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Advantages and returns, and the tokens' KL: (B, R) each."""
    mask = rolled.mask
    kl = kl_estimate(rolled.logprobs, rolled.ref_logprobs, s.kl_estimator) * mask
    if isinstance(s, RLOOConfig):
        # The whole reply is one action, and so is its KL; each token gets the reply's advantage.
        advantages = leave_one_out(scores - kl_coef * kl.sum(1), s.num_generations)[:, None] * mask
        return whiten(advantages, mask, process_group.sum, shift_mean=False), torch.zeros_like(advantages), kl
    assert isinstance(s, PPOConfig)
    paid = token_rewards(scores, kl, mask, kl_coef)
    if s.whiten_rewards:
        paid = whiten(paid, mask, process_group.sum, shift_mean=False)
    advantages = gae(paid, rolled.values, mask, s.gamma, s.lam)
    returns = advantages + rolled.values
    return whiten(advantages, mask, process_group.sum), returns, kl


def rollout_metrics(
    rolled: Rollout,
    scores: torch.Tensor,
    part_scores: dict[str, list[float]],
    kl: torch.Tensor,
    kl_coef: float,
    process_group: ProcessGroup,
) -> dict[str, float]:
    """Means over the replies of all processes, by TRL's names. KL and entropy are sums over a reply's tokens."""
    estimates = {k: kl_estimate(rolled.logprobs, rolled.ref_logprobs, k) * rolled.mask for k in ("k1", "k2", "k3")}
    penalty = -kl_coef * kl.sum(1)
    columns = {
        "objective/kl": kl.sum(1),
        **{f"objective/kl_{name}": values.sum(1) for name, values in estimates.items()},
        "objective/entropy": -(rolled.logprobs * rolled.mask).sum(1),
        "objective/non_score_reward": penalty,
        "objective/scores": scores,
        "objective/rlhf_reward": scores + penalty,
        "objective/length": rolled.mask.sum(1).float(),
        "objective/ended": rolled.ended.float(),
        **{f"reward/{name}": torch.tensor(values) for name, values in part_scores.items()},
    }
    sums = process_group.sum(torch.stack([c.double().sum() for c in columns.values()]))
    means = dict(zip(columns, (sums / (len(scores) * process_group.size)).tolist(), strict=True))
    return means | {
        "objective/kl_coef": kl_coef,
        "objective/distinct_2": diagnostics.distinct_2(rolled.texts),
        "objective/repetition": diagnostics.repeated_bigrams(rolled.texts),
        "val/num_eos_tokens": means["objective/ended"] * len(scores) * process_group.size,
    }


def evaluate_policy(game: PPOTrainer, prompts: list[Prompt], folder: Path, state: TrainerState) -> dict[str, float]:
    """The likeliest replies to held-out prompts; the weights are kept where none scored better before."""
    if not prompts or game.process_group.rank:
        return {}
    rolled = game.roll(prompts, None)
    try:
        scores, part_scores = score_replies(rolled, game.parts, game.settings)
    except FloatingPointError as error:
        raise nonfinite_error(rolled, folder, state.iteration, error) from None
    # Likeliest tokens are no sample of the policy's: on them k1 may fall below zero, and k3 cannot.
    kl = (kl_estimate(rolled.logprobs, rolled.ref_logprobs, "k3") * rolled.mask).sum(1)
    mean = float(scores.mean())
    if mean > state.best_reward:
        state.best_reward, state.best_iteration = mean, state.iteration
        save_best_policy(folder, game.actor)
    return {
        "eval/scores": mean,
        "eval/kl": float(kl.mean()),
        "eval/length": float(rolled.mask.sum(1).float().mean()),
        "eval/ended": float(rolled.ended.float().mean()),
        "eval/distinct_2": diagnostics.distinct_2(rolled.texts),
        **{f"eval/reward_{name}": sum(values) / len(values) for name, values in part_scores.items()},
    }


def make_optimizer(actor: Policy, s: OnlineRLConfig, optim: str = "adamw_torch_fused") -> torch.optim.Optimizer:
    """Adam (ε 1e-5: Huang et al. 2024), the critic with a learning rate of its own."""
    named = {n: p for n, p in actor.named_parameters() if p.requires_grad}
    critic = [p for n, p in named.items() if is_critic(n)]
    groups = [{"params": [p for n, p in named.items() if not is_critic(n)], "lr": s.learning_rate}]
    if isinstance(s, PPOConfig):
        groups.append({"params": critic, "lr": s.value_learning_rate})
    optimizer = adamw(groups, optim, eps=1e-5, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def is_critic(name: str) -> bool:
    return name.startswith("value_head") or ".critic." in name


def pick_prompts(count: int, s: OnlineRLConfig, seed: int, iteration: int) -> list[int]:
    """The prompts of an iteration, as numbers: every prompt once in an order of its epoch, then anew."""
    copies = s.num_generations if isinstance(s, RLOOConfig) else 1
    need = s.batch_size // copies
    found = []
    for at in range(iteration * need, (iteration + 1) * need):
        epoch, place = divmod(at, count)
        found.append(epoch_order(count, seed, epoch)[place])
    return [row for row in found for _ in range(copies)]


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/prompts/{epoch}").shuffle(order)
    return order


def sampling_uniforms(s: OnlineRLConfig, seed: int, iteration: int) -> torch.Tensor:
    """What sampling draws from, a row for each reply of all processes: (batch_size, response_length)."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed}/{iteration}/tokens").getrandbits(63))
    return torch.rand(s.batch_size, s.response_length, generator=generator)


class IterationBar:
    """Iterations, reward, KL, time left."""

    def __init__(self, total: int, done: int, shown: bool):
        self.progress = progress_bar("iterations", shown)
        self.task = self.progress.add_task("", total=total, completed=done, numbers="")

    def __enter__(self) -> "IterationBar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, done: int, metrics: dict[str, float]) -> None:
        numbers = f"score {metrics['objective/scores']:+.2f}  KL {metrics['objective/kl']:.2f}"
        self.progress.update(self.task, completed=done, numbers=numbers)
