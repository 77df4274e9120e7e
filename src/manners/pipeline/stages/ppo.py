"""PPO and RLOO: the policy answers, is paid for what it says, and answers again."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from manners.config.schema import OnlineRLConfig
from manners.data.loading import eval_prompts
from manners.data.tokenize import tokenize
from manners.errors import MannersError
from manners.evaluation.evaluate import REWARD_NAME, EvalResult, evaluate, point_estimate, stratified_sample
from manners.evaluation.metrics.reference_nll import reference_nll
from manners.evaluation.reports.reward_figures import online_curves
from manners.evaluation.stats import bootstrap_ratio
from manners.methods import reward
from manners.methods.distributed import check_batch_divides
from manners.methods.ppo import diagnostics, trainer
from manners.methods.ppo.advantages import kl_estimate
from manners.methods.ppo.trainer import PPOTrainer
from manners.models import loading
from manners.models import reward_model as reward_models
from manners.models.policy import Policy
from manners.models.reward_model import ScoreNormalizer
from manners.models.vllm import VLLMBackend
from manners.pipeline.stages import reporting
from manners.pipeline.stages.context import (
    RunContext,
    StageResult,
    build_prompts,
    configured_tokenizer,
    console,
    load_base,
    prepare_model,
)
from manners.pipeline.stages.policy import save_policy, starting_policy
from manners.rewards import combine
from manners.runtime.run_dir import RunArtifact

KL_SAMPLE_PROMPTS = 256  # test prompts whose sampled replies tell the KL: enough for a tenth of a nat


def train_online(run: RunContext) -> StageResult:
    cfg, settings = run.cfg, method_config(run.cfg)
    check_batch_divides(settings, run.process_group)
    tokenizer = configured_tokenizer(cfg)
    model = prepare_model(cfg, starting_policy(run), run.device)
    actor = Policy(model, getattr(settings, "critic", "none"), run.device.precision == "bf16")
    parts = combine.build_components(OmegaConf.to_container(cfg.method.rewards, resolve=True), load_reward_func(run))  # type: ignore[arg-type]
    stops, engine = loading.stop_token_ids(model, tokenizer), vllm_backend(settings, model, tokenizer)
    game = PPOTrainer(actor, tokenizer, stops, parts, settings, cfg.seed, run.process_group, engine, cfg.method.optim)
    if run.process_group.rank == 0:
        before = EvalResult.from_json(run.once("before", lambda: evaluate_policy_on_test(run, game).to_json()))
        run.tracker.log(before.metrics("before"), 0)

    held_out = stratified_sample(build_prompts(cfg, run.splits.validation or run.splits.test), settings.num_eval_prompts)
    warn = lambda words: console.print(words, style="yellow")  # noqa: E731
    asked = build_prompts(cfg, run.splits.train)
    trained = trainer.train_ppo(game, asked, held_out, run.path, run.tracker.log, run.tracker.table, warn)

    if run.process_group.rank:
        return StageResult(trained.best_reward, trained.best_iteration, "")
    run.folder.update_state(tokens=count_sampled_tokens(run.path / "metrics.jsonl", settings.batch_size))
    after = evaluate_policy_on_test(run, game)
    run.tracker.log(after.metrics("after"), trained.iterations)
    save_policy(run, model, tokenizer)
    curves = online_curves(run.path / "metrics.jsonl", trained.best_iteration, run.path / "curves.png")
    reporting.report_before_after(run, before, after, [curves] if curves else [])
    return StageResult(trained.best_reward, trained.best_iteration, after.headline(before))


def count_sampled_tokens(metrics_file: Path, replies: int) -> int:
    """Tokens of all the replies that were learned from, ``replies`` of them an iteration."""
    records = map(json.loads, metrics_file.read_text().splitlines())
    return round(sum(r.get("objective/length", 0.0) for r in records) * replies)


def vllm_backend(s: OnlineRLConfig, model: Any, tokenizer: Any) -> VLLMBackend | None:
    """What samples in the policy's place, made once for the run and by all its processes together."""
    longest = s.max_prompt_length + s.response_length
    return VLLMBackend(model, tokenizer, longest) if s.generation_backend == "vllm" else None


def method_config(cfg: DictConfig) -> OnlineRLConfig:
    """The method's options as the dataclass that explains them."""
    return OmegaConf.to_object(cfg.method)  # type: ignore[return-value]


def load_reward_func(run: RunContext) -> Any:
    """The trained reward model with its own tokenizer, or None. One that failed its sanity suite is refused."""
    source = run.inputs.get("reward")
    if source is None:
        return None
    check_reward_sanity(source, run.cfg.method.min_sanity_accuracy)
    made_by = source.config
    revision = made_by.model.revision if made_by else None
    network = reward_models.load_reward_model(source.model, revision).to(run.device.kind)
    tokenizer = loading.load_tokenizer(str(source.model), chats=False)
    # A regression's raw scores are standardised already; those learned from pairs become so by their units.
    pairwise = made_by is not None and made_by.method.loss == "pairwise"
    units = ScoreNormalizer.load(source.model) if pairwise else ScoreNormalizer()
    return reward.make_reward_func(network, tokenizer, made_by.method.max_length if made_by else 512, units)


def check_reward_sanity(source: RunArtifact, floor: float) -> None:
    file = source.model / "sanity.json"
    passed = OmegaConf.load(file).passed.value if file.exists() else 0.0
    if passed < floor:
        known = f"sees through {passed:.1%} of spoilt replies" if file.exists() else "has no sanity.json"
        raise MannersError(
            f"the reward model {source.run} {known}, and method.min_sanity_accuracy={floor}: PPO would exploit it. Train it "
            "on spoilt replies (method.corruption_ratio=0.2), or take it as it is: "
            f"method.min_sanity_accuracy={math.floor(100 * passed) / 100:.2f}"
        )


def evaluate_policy_on_test(run: RunContext, game: PPOTrainer) -> EvalResult:
    """The policy on the test rows: manner and loss as for SFT, and what reward, reference and base make of it."""
    cfg, s, model = run.cfg, game.settings, game.actor.model
    held_out = run.splits.test or run.splits.validation
    examples = tokenize(held_out, game.tokenizer, cfg.dataset.loss_roles, s.max_prompt_length + s.response_length)
    fixed, asked = eval_prompts(cfg.dataset), build_prompts(cfg, held_out)
    measured = evaluate(model, game.tokenizer, asked, fixed, examples, **reporting.evaluate_settings(cfg))
    asked = asked[:KL_SAMPLE_PROMPTS]
    draws = torch.rand(len(asked), s.response_length, generator=torch.Generator().manual_seed(cfg.seed))
    sampled, greedy = game.roll(asked, draws), game.roll(asked, None)
    kl = (kl_estimate(sampled.logprobs, sampled.ref_logprobs, "k1") * sampled.mask).sum(1)
    scores, _ = trainer.score_replies(greedy, game.parts, s)
    nats, tokens = reference_nll(load_base(cfg, run.device).to(run.device.kind), greedy.prompt_ids, greedy.reply_ids)
    distinct = diagnostics.distinct_2(greedy.texts)
    ones = np.ones(len(asked))
    more = {
        REWARD_NAME: bootstrap_ratio(scores.double().numpy(), ones),
        "KL to the start, nats a reply": bootstrap_ratio(kl.double().numpy(), ones),
        "length, tokens a reply": bootstrap_ratio(tokens, ones),
        "nats a token under the base": bootstrap_ratio(nats, tokens),
        "distinct-2 of the replies": point_estimate(distinct),
    }
    return replace(measured, more=measured.more | more)
