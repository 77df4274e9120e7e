"""PPO and RLOO for language models on one page: sample, score, penalize, estimate advantages, update, log.

What is done, with the details of Huang et al. 2024 (arXiv 2403.17031) that matter:

- the reward of a token is −β·KL to the reference; the last token, EOS included, gets the score on top (detail 4);
- log-probabilities, and so the ratio, are taken at the sampling temperature (detail 5) and without dropout;
- a reply without EOS loses ``missing_eos_penalty`` (detail 6); rewards can be clipped, and whitened without a shift of
  the mean (detail 7); advantages are whitened over the response tokens of all processes;
- the value of what follows the last token is 0; value head at 0, learning rate of its own; Adam with ε = 1e-5;
- the update is Schulman et al. 2017, equation 7, with a clipped value loss; adaptive KL is Ziegler et al. 2019.

What differs from TRL 1.12's PPOTrainer: the critic shares the trunk of the policy, and the reference is the policy with
its adapter disabled, so one network is in memory; the score is placed at EOS, not one token after it; gradients are
normalized by the tokens of a minibatch, not averaged over microbatches, and clipped; the learning rate decays for each
iteration; the reward model reads text with its own tokenizer; a run can resume, stop on the KL, and evaluates itself.

Everything random derives from (seed, iteration): the prompts, the uniforms that sampling draws from, the minibatches.
So a killed run resumes to the same weights, and two processes do what one would.
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
from manners.methods.optim import adamw, learning_rate_factor
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
from manners.models.generation import Backend, Sampling
from manners.models.policy import Policy
from manners.rewards.combine import RewardComponent, combine_rewards
from manners.runtime import signals
from manners.runtime.progress import progress

LogMetrics = Callable[[dict[str, float], int], None]
LogTable = Callable[[list[dict[str, Any]], str], None]


@dataclass(frozen=True)
class PPOTrainer:
    """What PPO works with."""

    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: list[int]
    rewards: dict[str, RewardComponent]
    config: OnlineRLConfig
    seed: int
    process_group: ProcessGroup
    vllm: Backend | None = None  # samples where config.generation_backend is vllm

    def sample(self, prompts: list[Prompt], uniforms: torch.Tensor | None) -> Rollout:
        """Replies to the prompts, sampled by ``uniforms`` (B, R), or greedy where they are None."""
        config = self.config
        sampling = Sampling(
            config.response_length,
            tuple(self.stop_token_ids),
            self.tokenizer.pad_token_id,
            0.0 if uniforms is None else config.temperature,
            self.vllm or config.generation_backend,
        )
        prompt_ids = encode_prompts(prompts, self.tokenizer, config.max_prompt_length)
        return rollout(self.policy, self.tokenizer, prompts, prompt_ids, sampling, uniforms, config.microbatch_tokens)


@dataclass
class PPOResult:
    """How a run ended."""

    iterations: int
    best_iteration: int
    best_reward: float  # mean score of the greedy replies to the eval prompts
    resumed_from: int  # 0 for a run that was never interrupted


def train_ppo(
    trainer: PPOTrainer,
    prompts: list[Prompt],
    eval_prompts: list[Prompt],
    folder: Path,
    log: LogMetrics,
    log_table: LogTable,
    warn: Callable[[str], None],
) -> PPOResult:
    """Train the policy in place; it ends with the weights that scored best on ``eval_prompts``.

    ``folder`` keeps the last checkpoint and the best weights. Raises MannersError, with the batch saved, where a number
    is not finite, and ShutdownRequested after a checkpoint where a signal asked for it.
    """
    config, is_main = trainer.config, trainer.process_group.rank == 0
    optimizer = make_optimizer(trainer.policy, config)
    iterations = -(-config.total_episodes // config.batch_size)
    state = load_checkpoint(folder, trainer.policy, optimizer) or TrainerState(kl_coef=config.kl_coef)
    resumed_from = state.iteration
    with signals.defer_signals(), progress(iterations, "PPO iterations", resumed_from, enabled=is_main) as bar:
        if state.iteration == 0:
            log(evaluate_policy(trainer, eval_prompts, folder, state), 0)
        while state.iteration < iterations:
            factor = learning_rate_factor(config.lr_scheduler_type, state.iteration, warmup=0, total=iterations)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

            metrics, batch, samples = training_step(trainer, prompts, optimizer, state, folder)

            log(metrics | {"train/learning_rate": config.learning_rate * factor}, state.iteration)
            bar.update(state.iteration, score=metrics["objective/scores"], kl=metrics["objective/kl"])
            mean_score, mean_length = metrics["objective/scores"], metrics["objective/length"]
            for warning in state.collapse.update(mean_score, mean_length, batch.texts):
                warn(f"iteration {state.iteration}: {warning}")
            if state.iteration % config.log_samples_steps == 0:
                log_table(samples, f"rollouts/{state.iteration:05d}.json")
            if state.iteration % config.eval_steps == 0 or state.iteration == iterations:
                log(evaluate_policy(trainer, eval_prompts, folder, state), state.iteration)
            if state.iteration % config.save_steps == 0 and is_main:
                save_checkpoint(folder, state, trainer.policy, optimizer)
            stop_if_requested(folder, state, trainer.policy, optimizer, trainer.process_group)
    load_best_policy(folder, trainer.policy)
    return PPOResult(iterations, state.best_iteration, state.best_reward, resumed_from)


def training_step(
    trainer: PPOTrainer, prompts: list[Prompt], optimizer: torch.optim.Optimizer, state: TrainerState, folder: Path
) -> tuple[dict[str, float], Rollout, list[dict[str, Any]]]:
    """One iteration: its metrics, its rollout, and a table of its first replies. Advances ``state``.

    Raises MannersError where a score, the loss or a gradient is not finite.
    """
    config, seed, processes = trainer.config, trainer.seed, trainer.process_group

    # 1. Sample a reply to each prompt of this iteration; each process samples its share of the batch.
    rows = processes.shard(pick_prompts(len(prompts), config, seed, state.iteration))
    uniforms = torch.tensor(processes.shard(sampling_uniforms(config, seed, state.iteration).tolist()))
    batch = trainer.sample([prompts[row] for row in rows], uniforms)
    try:
        # 2. Score the replies: the weighted sum of the rewards, clipped, less the penalty for a missing EOS.
        scores, rewards = score_replies(batch, trainer.rewards, config)

        # 3. Subtract the KL penalty at every token, and estimate advantages and returns.
        advantages, returns, kl = compute_advantages(batch, scores, config, state.kl_coef, processes)
        stop_if_requested(folder, state, trainer.policy, optimizer, processes)  # the weights are still the state's

        # 4. Update the policy and the critic, over epochs of minibatches.
        shuffle = random.Random(f"{seed}/{state.iteration}/minibatches")
        pad_token_id = trainer.tokenizer.pad_token_id
        update = update_policy(
            trainer.policy, optimizer, batch, advantages, returns, config, shuffle, pad_token_id, processes
        )
    except FloatingPointError as error:
        raise nonfinite_error(batch, folder, state.iteration + 1, error) from None

    # 5. Measure, and adapt the KL coefficient.
    metrics = rollout_metrics(batch, scores, rewards, kl, state.kl_coef, processes) | update.metrics
    state.iteration += 1
    metrics |= {
        "episode": float(state.iteration * config.batch_size),
        "policy/optimizer_steps": float(update.optimizer_steps),
        "policy/stopped_early": float(update.stopped_early),
    }
    if config.adaptive_kl:
        mean_kl = metrics["objective/kl"]
        state.kl_coef = adapt_kl_coef(state.kl_coef, mean_kl, config.kl_target, config.kl_horizon, config.batch_size)
    return metrics, batch, sample_table(batch, rewards, kl.sum(1), config.log_samples)


def score_replies(
    batch: Rollout, rewards: dict[str, RewardComponent], config: OnlineRLConfig
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """The score (B,) of each reply, and what each reward gave it."""
    sums, scores = combine_rewards(rewards, batch.prompts, batch.texts, batch.reply_ids, batch.has_eos.tolist())
    total = torch.tensor(sums)
    if config.reward_clip is not None:
        total = total.clamp(-config.reward_clip, config.reward_clip)
    return total - config.missing_eos_penalty * ~batch.has_eos, scores


def compute_advantages(
    batch: Rollout, scores: torch.Tensor, config: OnlineRLConfig, kl_coef: float, process_group: ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whitened advantages, returns, and the KL of each token in nats: (B,) scores → (B, R) each."""
    mask = batch.mask
    kl = kl_estimate(batch.logprobs, batch.ref_logprobs, config.kl_estimator) * mask
    if isinstance(config, RLOOConfig):
        # The whole reply is one action, and so is its KL; each token gets the advantage of the reply.
        advantages = leave_one_out(scores - kl_coef * kl.sum(1), config.num_generations)[:, None] * mask
        return whiten(advantages, mask, process_group.sum, shift_mean=False), torch.zeros_like(advantages), kl
    assert isinstance(config, PPOConfig)
    rewards = token_rewards(scores, kl, mask, kl_coef)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, process_group.sum, shift_mean=False)
    advantages = gae(rewards, batch.values, mask, config.gamma, config.lam)
    returns = advantages + batch.values
    return whiten(advantages, mask, process_group.sum), returns, kl


def rollout_metrics(
    batch: Rollout,
    scores: torch.Tensor,
    rewards: dict[str, list[float]],
    kl: torch.Tensor,
    kl_coef: float,
    process_group: ProcessGroup,
) -> dict[str, float]:
    """Means over the replies of all processes, by TRL's names: scores (B,), KL (B, R).

    KL and entropy are sums over the tokens of a reply, in nats.
    """
    estimates = {k: kl_estimate(batch.logprobs, batch.ref_logprobs, k) * batch.mask for k in ("k1", "k2", "k3")}
    penalty = -kl_coef * kl.sum(1)
    columns = {
        "objective/kl": kl.sum(1),
        **{f"objective/kl_{name}": values.sum(1) for name, values in estimates.items()},
        "objective/entropy": -(batch.logprobs * batch.mask).sum(1),
        "objective/non_score_reward": penalty,
        "objective/scores": scores,
        "objective/rlhf_reward": scores + penalty,
        "objective/length": batch.mask.sum(1).float(),
        "objective/eos_rate": batch.has_eos.float(),
        **{f"reward/{name}": torch.tensor(values) for name, values in rewards.items()},
    }
    sums = process_group.sum(torch.stack([column.double().sum() for column in columns.values()]))
    num_replies = len(scores) * process_group.size
    means = dict(zip(columns, (sums / num_replies).tolist(), strict=True))
    return means | {
        "objective/kl_coef": kl_coef,
        "objective/distinct_2": diagnostics.distinct_2(batch.texts),
        "objective/repeated_bigrams": diagnostics.repeated_bigrams(batch.texts),
        "val/num_eos_tokens": means["objective/eos_rate"] * num_replies,
    }


def evaluate_policy(trainer: PPOTrainer, prompts: list[Prompt], folder: Path, state: TrainerState) -> dict[str, float]:
    """Metrics of greedy replies to held-out prompts. The weights are kept where no earlier ones scored better.

    Raises MannersError where a score is not finite.
    """
    if not prompts or trainer.process_group.rank:
        return {}
    batch = trainer.sample(prompts, None)
    try:
        scores, rewards = score_replies(batch, trainer.rewards, trainer.config)
    except FloatingPointError as error:
        raise nonfinite_error(batch, folder, state.iteration, error) from None
    # Greedy tokens are no sample of the policy: on them k1 may fall below zero, and k3 cannot.
    kl = (kl_estimate(batch.logprobs, batch.ref_logprobs, "k3") * batch.mask).sum(1)
    mean_score = float(scores.mean())
    if mean_score > state.best_reward:
        state.best_reward, state.best_iteration = mean_score, state.iteration
        save_best_policy(folder, trainer.policy)
    return {
        "eval/scores": mean_score,
        "eval/kl": float(kl.mean()),
        "eval/length": float(batch.mask.sum(1).float().mean()),
        "eval/eos_rate": float(batch.has_eos.float().mean()),
        "eval/distinct_2": diagnostics.distinct_2(batch.texts),
        **{f"eval/reward_{name}": sum(values) / len(values) for name, values in rewards.items()},
    }


def nonfinite_error(batch: Rollout, folder: Path, iteration: int, error: FloatingPointError) -> MannersError:
    """What to say where a number is not finite; the batch is saved for whoever must find out why."""
    file = diagnostics.dump_batch(batch, folder, str(error))
    return MannersError(
        f"iteration {iteration}: {error}. The batch is in {file}. Try a lower method.learning_rate or a "
        "method.target_kl; the same command resumes from the last checkpoint."
    )


def make_optimizer(policy: Policy, config: OnlineRLConfig) -> torch.optim.Optimizer:
    """AdamW without decay (ε 1e-5: Huang et al. 2024), with a learning rate of its own for the critic."""
    named = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    critic = [p for name, p in named.items() if is_critic(name)]
    groups = [{"params": [p for name, p in named.items() if not is_critic(name)], "lr": config.learning_rate}]
    if isinstance(config, PPOConfig):
        groups.append({"params": critic, "lr": config.value_learning_rate})
    optimizer = adamw(groups, config.optim, eps=1e-5, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def is_critic(name: str) -> bool:
    return name.startswith("value_head") or ".critic." in name


def pick_prompts(count: int, config: OnlineRLConfig, seed: int, iteration: int) -> list[int]:
    """Indices of the prompts of an iteration: each of ``count`` once in the shuffled order of its epoch, then again."""
    copies = config.num_generations if isinstance(config, RLOOConfig) else 1
    num_prompts = config.batch_size // copies
    picked = []
    for position in range(iteration * num_prompts, (iteration + 1) * num_prompts):
        epoch, index = divmod(position, count)
        picked.append(prompt_order(count, seed, epoch)[index])
    return [row for row in picked for _ in range(copies)]


def prompt_order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/prompts/{epoch}").shuffle(order)
    return order


def sampling_uniforms(config: OnlineRLConfig, seed: int, iteration: int) -> torch.Tensor:
    """What sampling draws from, for the replies of all processes: (batch_size, response_length) in [0, 1)."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed}/{iteration}/tokens").getrandbits(63))
    return torch.rand(config.batch_size, config.response_length, generator=generator)
