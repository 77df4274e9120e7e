"""PPO and RLOO: evaluate the policy, train it on the scores of its own replies, evaluate it again."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from manners.config.schema import OnlineRLConfig
from manners.data.clusters import cluster_ids
from manners.data.loading import build_prompts, eval_prompts
from manners.data.mixture import DATASET
from manners.data.tokenize import tokenize
from manners.data.types import distinct_prompts
from manners.evaluation.evaluate import (
    KL_NAME,
    MAX_LOSS_LENGTH,
    REWARD_NAME,
    SAMPLED_REWARD_NAME,
    EvalResult,
    evaluate,
    stratified_sample,
)
from manners.evaluation.metrics.assistant_style import distinct_2_estimate
from manners.evaluation.reports.reward_figures import online_curves
from manners.evaluation.stats import Estimate, bootstrap_ratio, mean
from manners.methods.distributed import check_batch_divides
from manners.methods.ppo.advantages import kl_estimate
from manners.methods.ppo.rollout import Rollout, new_rollout
from manners.methods.ppo.trainer import PPOResult, PPOTrainer, score_replies, train_ppo
from manners.methods.reward import make_reward_func
from manners.models import loading
from manners.models.policy import Policy
from manners.models.reference_nll import reference_nll
from manners.models.reward_model import ScoreNormalizer
from manners.models.tokenizer import load_tokenizer
from manners.models.vllm import VLLMBackend
from manners.pipeline import dependencies, model_ref
from manners.pipeline.stages import reporting
from manners.pipeline.stages.context import (
    RunContext,
    StageResult,
    configured_tokenizer,
    console,
    load_base,
    prepare_model,
    starting_policy,
)
from manners.pipeline.stages.saving import save_policy
from manners.rewards.combine import RewardFunc, build_components

RISE_OF_LOSS = 1.0  # nats per token on replies of the data, which the policy may move away from
SAMPLED_AT_ONCE = 256  # test prompts; so many tell the KL, to a tenth of a nat, where evaluation.test_prompts is 0


def train_online(run: RunContext) -> StageResult:
    """Train the SFT policy by PPO or RLOO on ``method.rewards``."""
    trainer = make_trainer(run)
    config, model, tokenizer = trainer.config, trainer.policy.model, trainer.tokenizer
    is_main = run.process_group.rank == 0
    if is_main:
        reporting.report_cut_prompts(run, model, tokenizer)
        before = reporting.evaluate_before(run, lambda: evaluate_policy_on_test(run, trainer))

    result = train_ppo(
        trainer,
        prompts=build_prompts(run.cfg.dataset, run.splits.train),
        eval_prompts=stratified_sample(
            distinct_prompts(build_prompts(run.cfg.dataset, run.eval_rows)), config.num_eval_prompts
        ),
        folder=run.path,
        log=run.logger.log,
        log_table=run.logger.table,
        warn=lambda text: console.print(text, style="yellow"),
        choose_best=run.has_rows_to_choose_by,
    )

    metric = None if math.isnan(result.kept_reward) else result.kept_reward
    if not is_main:
        return StageResult(metric, result.kept_iteration)
    run.directory.update_state(tokens=count_sampled_tokens(run.path / "metrics.jsonl", config.batch_size))
    after = evaluate_policy_on_test(run, trainer)
    run.logger.log(after.metrics("after"), result.iterations)
    save_policy(run, model, tokenizer)
    curves = online_curves(run.path / "metrics.jsonl", result.kept_iteration, run.path / "curves.png")
    summary = improvement(result) + after.headline(before, RISE_OF_LOSS)
    reporting.report_before_after(run, before, after, summary, [curves] if curves else [])
    return StageResult(metric, result.kept_iteration, summary)


def improvement(result: PPOResult) -> str:
    """What to know first of a run whose reward did not rise, or that ends with earlier weights; else nothing."""
    if result.kept_iteration == 0:
        return "no improvement, the policy is the one that training started from: "
    kept = f", with the weights of iteration {result.kept_iteration}" * (result.kept_iteration < result.iterations)
    if result.improved is False:
        change = f"{result.start_reward:.2f} → {result.kept_reward:.2f}"
        return f"no improvement of the reward on validation prompts beyond chance ({change}{kept}): "
    return f"{kept.removeprefix(', ')}: " if kept else ""


def make_trainer(run: RunContext) -> PPOTrainer:
    """Policy, rewards and sampling as the config has them."""
    config: OnlineRLConfig = OmegaConf.to_object(run.cfg.method)  # type: ignore[assignment]
    check_batch_divides(config, run.process_group)
    tokenizer = configured_tokenizer(run.cfg)
    model = prepare_model(run.cfg, starting_policy(run), run.device)
    policy = Policy(model, getattr(config, "critic", "none"), run.device.precision == "bf16")
    return PPOTrainer(
        policy=policy,
        tokenizer=tokenizer,
        stop_token_ids=loading.stop_token_ids(model, tokenizer),
        rewards=build_components(run.cfg.method.rewards, load_reward_func(run), run.device.kind),
        config=config,
        seed=run.cfg.seed,
        process_group=run.process_group,
        vllm=vllm_backend(config, model, tokenizer),
    )


def vllm_backend(config: OnlineRLConfig, model: Any, tokenizer: Any) -> VLLMBackend | None:
    """vLLM where the config asks for it, created by all processes together."""
    max_length = config.max_prompt_length + config.response_length
    return VLLMBackend(model, tokenizer, max_length) if config.generation_backend == "vllm" else None


def load_reward_func(run: RunContext) -> RewardFunc | None:
    """The reward model of the run, with its own tokenizer, or None. One that failed its sanity check is refused."""
    artifact = run.inputs.get("reward")
    if artifact is None:
        return None
    dependencies.check_reward_sanity(artifact, run.cfg.method.min_sanity_accuracy)
    made_by = artifact.config
    network = model_ref.load_reward_network(artifact.model_dir, made_by, run.device.kind)
    tokenizer = load_tokenizer(str(artifact.model_dir), require_template=False)
    # The outputs of a regression are standardized already; those learned from pairs become so by their normalizer.
    pairwise = made_by is not None and made_by.method.loss == "pairwise"
    normalizer = ScoreNormalizer.load(artifact.model_dir) if pairwise else ScoreNormalizer()
    return make_reward_func(network, tokenizer, made_by.method.max_length if made_by else 512, normalizer)


def count_sampled_tokens(metrics_file: Path, batch_size: int) -> int:
    """Tokens of all the replies of a run, ``batch_size`` of them an iteration."""
    records = map(json.loads, metrics_file.read_text().splitlines())
    return round(sum(r.get("objective/length", 0.0) for r in records) * batch_size)


def evaluate_policy_on_test(run: RunContext, trainer: PPOTrainer) -> EvalResult:
    """The policy on the test rows: what SFT measures, and reward, KL, length and diversity of its replies."""
    cfg, config, model = run.cfg, trainer.config, trainer.policy.model
    examples = tokenize(run.loss_rows, trainer.tokenizer, cfg.dataset.loss_roles, MAX_LOSS_LENGTH)
    prompts, fixed = reporting.test_prompts(run), eval_prompts(cfg.dataset)
    with run.device.autocast():
        result = evaluate(model, trainer.tokenizer, prompts, fixed, examples, **reporting.evaluate_settings(run))

    sample = prompts[: cfg.evaluation.test_prompts or SAMPLED_AT_ONCE]
    generator = torch.Generator().manual_seed(cfg.seed)
    uniforms = torch.rand(len(sample), config.response_length, generator=generator)
    starts = range(0, len(sample), SAMPLED_AT_ONCE)
    parts = [slice(start, start + SAMPLED_AT_ONCE) for start in starts]
    sampled = [trainer.sample(sample[part], uniforms[part]) for part in parts]
    kl = torch.cat([(kl_estimate(s.logprobs, s.ref_logprobs, "k1") * s.mask).sum(1) for s in sampled])  # (N,)
    of_sampled = mean_reward(run, trainer, sampled, SAMPLED_REWARD_NAME) | {
        KL_NAME: mean(kl.double().numpy(), cluster_ids(sample))
    }
    of_shown = {}
    if replies := result.replies:  # those that the report shows and judges
        shown = new_rollout(
            prompts[: len(replies)],
            [r.prompt_ids for r in replies],
            [r.ids for r in replies],
            [r.text for r in replies],
            torch.tensor([r.has_eos for r in replies]),
        )
        clusters = cluster_ids(shown.prompts)
        base = load_base(cfg, run.device).to(run.device.kind)
        with run.device.autocast():
            nll, num_tokens = reference_nll(base, shown.prompt_ids, shown.reply_ids)
        of_shown = mean_reward(run, trainer, [shown], REWARD_NAME) | {
            "length, tokens per reply": mean(num_tokens, clusters),
            "NLL under the base model, nats per token": bootstrap_ratio(nll, num_tokens, clusters=clusters),
        }
        if diversity := distinct_2_estimate(shown.texts, clusters):
            of_shown["distinct-2 of the replies"] = diversity
    return replace(result, extra_metrics=result.extra_metrics | of_shown | of_sampled)


def mean_reward(run: RunContext, trainer: PPOTrainer, replies: list[Rollout], name: str) -> dict[str, Estimate]:
    """The mean reward of ``replies``, scored part by part, by its name in the report; by dataset, too.

    The unit of functions is their own. Empty where all rewards abstain on all of them.
    """
    only_model = not any("_target_" in component for component in run.cfg.method.rewards.values())
    scores = torch.cat([score_replies(part, trainer.rewards, trainer.config)[0] for part in replies]).double().numpy()
    scored = ~np.isnan(scores)
    unit = ", standard deviations" if only_model else ""
    prompts = [prompt for part in replies for prompt in part.prompts]
    clusters, datasets = cluster_ids(prompts), np.array([prompt.metadata.get(DATASET, "") for prompt in prompts])
    parts = {name + unit: scored} | {
        f"{name}{unit}: {d}": scored & (datasets == d) for d in dict.fromkeys(datasets) if d
    }
    return {title: mean(scores[of], clusters[of]) for title, of in parts.items() if of.any()}
