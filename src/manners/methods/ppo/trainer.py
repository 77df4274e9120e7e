"""PPO and RLOO for language models on one page: sample, score, penalize, estimate advantages, update, log.

What is done, with the details of Huang et al. 2024 (arXiv 2403.17031) that matter:

- the reward of a token is −β·KL (k1) to the reference; the last token, EOS included, gets the score on top (detail 4);
- log-probabilities, and so the ratio, are taken at the sampling temperature (detail 5) and without dropout;
- a reply without EOS loses ``missing_eos_penalty`` (detail 6); rewards can be clipped, and whitened without a shift of
  the mean (detail 7); advantages are whitened over the response tokens of all processes;
- the value of what follows the last token is 0; value head at 0, learning rate of its own; Adam with ε = 1e-5;
- the update is Schulman et al. 2017, equation 7, with a clipped value loss; adaptive KL is Ziegler et al. 2019.

What differs from TRL 1.12's PPOTrainer: the critic shares the trunk of the policy, and the reference is the policy with
its adapter disabled, so one network is in memory; the score is placed at EOS, not one token after it; gradients are
normalized by the tokens of a minibatch, not averaged over microbatches, and clipped; the learning rate decays for each
iteration; the reward model reads text with its own tokenizer; a run can resume, stop on the KL, and evaluates itself.

It evaluates the policy as it is trained: by sampled replies, always from the same random numbers. The last weights are
kept, unless those of an earlier evaluation score better beyond chance (``significantly_better``).

Everything random derives from (seed, iteration): the prompts, the uniforms that sampling draws from, the minibatches.
So a killed run resumes to the same weights, and two processes do what one would, unless a reward compares the replies
that it is given: each process scores its own.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from manners.config.schema import OnlineRLConfig, PPOConfig, RLOOConfig
from manners.data.clusters import cluster_ids
from manners.data.types import Prompt
from manners.errors import MannersError
from manners.methods.distributed import ProcessGroup
from manners.methods.optim import adamw, learning_rate_factor
from manners.methods.ppo import diagnostics
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
from manners.methods.ppo.checkpoint import (
    TrainerState,
    load_best_policy,
    load_checkpoint,
    save_best_policy,
    save_checkpoint,
    significantly_better,
    stop_if_requested,
)
from manners.methods.ppo.loss import update_policy
from manners.methods.ppo.rollout import Rollout, encode_prompts, run_networks, sample_replies, sample_table
from manners.models.generation import Backend, Sampling
from manners.models.policy import Policy
from manners.rewards.combine import RewardComponent, RewardLog, combine_rewards
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

    def sample(self, prompts: list[Prompt], uniforms: torch.Tensor) -> Rollout:
        """Replies sampled by ``uniforms`` (B, R), with what policy, reference and critic give each of their tokens."""
        config, pad_token_id = self.config, self.tokenizer.pad_token_id
        sampling = Sampling(
            config.response_length,
            tuple(self.stop_token_ids),
            pad_token_id,
            config.temperature,
            self.vllm or config.generation_backend,
        )
        prompt_ids = encode_prompts(prompts, self.tokenizer, config.max_prompt_length)
        batch = sample_replies(self.policy, self.tokenizer, prompts, prompt_ids, sampling, uniforms)
        run_networks(self.policy, batch, config.temperature, config.microbatch_tokens, pad_token_id)
        return batch


@dataclass
class PPOResult:
    """How a run ended."""

    iterations: int
    kept_iteration: int  # whose weights the policy ends with
    kept_reward: float  # their mean score on the eval prompts; NaN without any
    start_reward: float  # of the policy before training
    improved: bool | None  # whether they score better than the start, beyond chance; None without eval prompts
    resumed_from: int  # 0 for a run that was never interrupted


def train_ppo(
    trainer: PPOTrainer,
    prompts: list[Prompt],
    eval_prompts: list[Prompt],
    folder: Path,
    log: LogMetrics,
    log_table: LogTable,
    warn: Callable[[str], None],
    choose_best: bool = True,
) -> PPOResult:
    """Train the policy in place; it ends with the weights that ``keep_last_or_best`` chooses, or with the last ones.

    ``folder`` keeps the last checkpoint and the best weights. Raises MannersError, with the batch saved, where a number
    is not finite, and ShutdownRequested after a checkpoint where a signal asked for it.
    """
    config, is_main = trainer.config, trainer.process_group.rank == 0
    optimizer = make_optimizer(trainer.policy, config)
    iterations = num_iterations(config)
    state = load_checkpoint(folder, trainer.policy, optimizer) or TrainerState(kl_coef=config.kl_coef)
    resumed_from, warned = state.iteration, False
    title = f"{config.name.upper()} iterations"
    with signals.defer_signals(), progress(iterations, title, resumed_from, enabled=is_main) as bar:
        if state.num_evaluations == 0 and state.iteration == 0:  # a kill may have come in the first iteration
            log(without_nan(evaluate_policy(trainer, eval_prompts, folder, state)), 0)
        while state.iteration < iterations:
            factor = learning_rate_factor(config.lr_scheduler_type, state.iteration, warmup=0, total=iterations)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

            metrics, batch, samples = training_step(trainer, prompts, optimizer, state, folder)

            log(without_nan(metrics) | {"train/learning_rate": config.learning_rate * factor}, state.iteration)
            bar.update(state.iteration, score=metrics["objective/scores"], kl=metrics["objective/kl"])
            score, length = metrics["objective/scores"], metrics["objective/length"]
            for warning in [] if math.isnan(score) else state.collapse.update(score, length, batch.texts):
                warn(f"iteration {state.iteration}: {warning}")
            if "objective/unscored" in metrics and not warned:
                warned = True
                warn(f"iteration {state.iteration}: all rewards abstain on some replies, which are left out")
            if state.iteration % config.log_samples_steps == 0:
                log_table(samples, f"rollouts/{state.iteration:05d}.json")
            if state.iteration % config.eval_steps == 0 or state.iteration == iterations:
                log(without_nan(evaluate_policy(trainer, eval_prompts, folder, state)), state.iteration)
            if state.iteration % config.save_steps == 0 and is_main:
                save_checkpoint(folder, state, trainer.policy, optimizer)
            stop_if_requested(folder, state, trainer.policy, optimizer, trainer.process_group)
    return keep_last_or_best(trainer, folder, state, resumed_from, choose_best, cluster_ids(eval_prompts))


def keep_last_or_best(
    trainer: PPOTrainer,
    folder: Path,
    state: TrainerState,
    resumed_from: int,
    choose_best: bool,
    clusters: np.ndarray | None = None,
) -> PPOResult:
    """Leave the policy with the last weights, or with those of the best evaluation if it was better beyond chance.

    ``clusters`` (N,) are those of the eval prompts.
    """
    processes, candidates = trainer.process_group, max(state.num_evaluations - 1, 1)
    better = float(choose_best and significantly_better(state.best_scores, state.last_scores, candidates, clusters))
    if use_best := bool(processes.sum(torch.tensor(better)) > 0):  # only the first process has scores
        load_best_policy(folder, trainer.policy)
    kept = state.best_scores if use_best else state.last_scores
    return PPOResult(
        iterations=state.iteration,
        kept_iteration=state.best_iteration if use_best else state.iteration,
        kept_reward=mean_of_scored(kept),
        start_reward=mean_of_scored(state.start_scores),
        improved=significantly_better(kept, state.start_scores, candidates if use_best else 1, clusters)
        if kept
        else None,
        resumed_from=resumed_from,
    )


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
        log = RewardLog()
        scores, rewards = score_replies(
            batch, trainer.rewards, config, trl_trainer_state(config, state, len(prompts)), log
        )

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
    logged = mean_logged(processes.gather([dict(log.metrics)]))
    metrics = logged | rollout_metrics(batch, scores, rewards, kl, state.kl_coef, processes) | update.metrics
    state.iteration += 1
    metrics |= {
        "episode": float(state.iteration * config.batch_size),
        "policy/optimizer_steps": float(update.optimizer_steps),
        "policy/stopped_early": float(update.stopped_early),
    }
    if isinstance(config, PPOConfig):
        scored = batch.mask & ~scores.isnan()[:, None]
        metrics["val/explained_variance"] = explained_variance(batch.values, returns, scored, processes.sum)
    if config.adaptive_kl:
        mean_kl = metrics["objective/kl"]
        state.kl_coef = adapt_kl_coef(state.kl_coef, mean_kl, config.kl_target, config.kl_horizon, config.batch_size)
    return metrics, batch, sample_table(batch, rewards, log.columns, kl.sum(1), config.log_samples)


def trl_trainer_state(config: OnlineRLConfig, state: TrainerState, num_prompts: int) -> transformers.TrainerState:
    """What reward functions are told of the progress, in TRL's form; its steps are iterations."""
    return transformers.TrainerState(
        epoch=state.iteration * config.batch_size / num_prompts,
        global_step=state.iteration,
        max_steps=num_iterations(config),
    )


def num_iterations(config: OnlineRLConfig) -> int:
    return -(-config.total_episodes // config.batch_size)


def mean_logged(logs: list[dict[str, list[float]]]) -> dict[str, float]:
    """The mean of what the reward functions of all processes logged, by metric."""
    values = {name: [v for log in logs for v in log.get(name, [])] for log in logs for name in log}
    return {name: sum(found) / len(found) for name, found in values.items()}


def score_replies(
    batch: Rollout,
    rewards: dict[str, RewardComponent],
    config: OnlineRLConfig,
    trainer_state: transformers.TrainerState | None = None,
    log: RewardLog | None = None,
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """The score (B,) of each reply, and what each reward gave it; NaN where all rewards, or this one, abstain."""
    eos = batch.has_eos.tolist()
    sums, scores = combine_rewards(rewards, batch.prompts, batch.texts, batch.reply_ids, eos, trainer_state, log)
    total = torch.tensor(sums)
    if config.reward_clip is not None:
        total = total.clamp(-config.reward_clip, config.reward_clip)
    return total - config.missing_eos_penalty * ~batch.has_eos, scores


def compute_advantages(
    batch: Rollout, scores: torch.Tensor, config: OnlineRLConfig, kl_coef: float, process_group: ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whitened advantages, returns, and the KL of each token in nats: (B,) scores → (B, R) each.

    A reply without a score (NaN) has advantages of 0, and moves neither policy nor critic.
    """
    kl = kl_estimate(batch.logprobs, batch.ref_logprobs, "k1") * batch.mask
    if isinstance(config, RLOOConfig):
        # The whole reply is one action, and so is its KL; each token gets the advantage of the reply.
        by_reply = leave_one_out(scores - kl_coef * kl.sum(1), config.num_generations)
        advantages = normalize_by_std(by_reply, process_group.sum)[:, None] * batch.mask
        return advantages, torch.zeros_like(advantages), kl
    assert isinstance(config, PPOConfig)
    mask = batch.mask & ~scores.isnan()[:, None]
    rewards = kl_penalized_rewards(scores.nan_to_num(0.0), kl, mask, kl_coef)
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

    KL and entropy are sums over the tokens of a reply, in nats. A mean of scores is over the replies that have one, and
    NaN where none has.
    """
    estimates = {k: kl_estimate(batch.logprobs, batch.ref_logprobs, k) * batch.mask for k in ("k2", "k3")}
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
    table = torch.stack([column.double() for column in columns.values()])
    sums, counts = process_group.sum(torch.stack([table.nansum(1), (~table.isnan()).sum(1).double()]))
    num_replies = len(scores) * process_group.size
    means = dict(zip(columns, (sums / counts).tolist(), strict=True))
    unscored = 1 - float(counts[list(columns).index("objective/scores")]) / num_replies
    return (
        means
        | ({"objective/unscored": unscored} if unscored else {})
        | {
            "objective/kl_coef": kl_coef,
            "objective/distinct_2": diagnostics.distinct_2(batch.texts),
            "objective/repeated_bigrams": diagnostics.repeated_bigrams(batch.texts),
            "val/num_eos_tokens": means["objective/eos_rate"] * num_replies,
        }
    )


def evaluate_policy(trainer: PPOTrainer, prompts: list[Prompt], folder: Path, state: TrainerState) -> dict[str, float]:
    """Metrics of sampled replies to held-out prompts, with a standard error. The best weights so far are saved.

    What is sampled from is the same in each evaluation, so that two differ in the policy alone. Raises MannersError
    where a score is not finite, or all abstain on all replies.
    """
    if not prompts or trainer.process_group.rank:
        return {}
    config, log = trainer.config, RewardLog()
    batch = trainer.sample(prompts, draw_uniforms(len(prompts), config.response_length, f"{trainer.seed}/eval/tokens"))
    try:
        scores, rewards = score_replies(batch, trainer.rewards, config, log=log)
    except FloatingPointError as error:
        raise nonfinite_error(batch, folder, state.iteration, error) from None
    kl = (kl_estimate(batch.logprobs, batch.ref_logprobs, "k1") * batch.mask).sum(1)
    if scores.isnan().all():
        raise MannersError(
            f"all rewards abstain (None or NaN) on the replies to all {len(prompts)} held-out prompts, so that nothing "
            "can be measured: see what each function of method.rewards returns."
        )
    state.last_scores = scores.tolist()
    state.num_evaluations += 1
    if state.num_evaluations == 1:
        state.start_scores = state.last_scores
    last, best = mean_of_scored(state.last_scores), mean_of_scored(state.best_scores)
    if math.isnan(best) or last > best:
        state.best_scores, state.best_iteration = state.last_scores, state.iteration
        save_best_policy(folder, trainer.policy)
    scored = scores[~scores.isnan()].double()
    return {f"eval/{name}": value for name, value in mean_logged([log.metrics]).items()} | {
        "eval/scores": last,
        "eval/scores_stderr": float(scored.var(correction=1).div(len(scored)).sqrt()) if len(scored) > 1 else 0.0,
        "eval/kl": float(kl.mean()),
        "eval/length": float(batch.mask.sum(1).float().mean()),
        "eval/eos_rate": float(batch.has_eos.float().mean()),
        "eval/distinct_2": diagnostics.distinct_2(batch.texts),
        **{f"eval/reward_{name}": mean_of_scored(values) for name, values in rewards.items()},
    }


def without_nan(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that have a value: a mean over no replies has none."""
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def mean_of_scored(scores: list[float]) -> float:
    """The mean of the scores that are not NaN; NaN where there are none."""
    given = [score for score in scores if not math.isnan(score)]
    return sum(given) / len(given) if given else math.nan


def nonfinite_error(batch: Rollout, folder: Path, iteration: int, error: FloatingPointError) -> MannersError:
    """The error for a number that is not finite; the batch is saved for debugging."""
    file = diagnostics.dump_batch(batch, folder, str(error))
    return MannersError(
        f"iteration {iteration}: {error}. The batch is in {file}. The same command would meet it again: try a lower "
        "method.learning_rate or a method.target_kl, which begins a new run."
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


@lru_cache(maxsize=2)  # an iteration may span two epochs
def prompt_order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/prompts/{epoch}").shuffle(order)
    return order


def sampling_uniforms(config: OnlineRLConfig, seed: int, iteration: int) -> torch.Tensor:
    """What sampling draws from, for the replies of all processes: (batch_size, response_length) in [0, 1)."""
    return draw_uniforms(config.batch_size, config.response_length, f"{seed}/{iteration}/tokens")


def draw_uniforms(rows: int, columns: int, key: str) -> torch.Tensor:
    """(rows, columns) numbers in [0, 1) that depend on ``key`` alone."""
    generator = torch.Generator().manual_seed(random.Random(key).getrandbits(63))
    return torch.rand(rows, columns, generator=generator)
