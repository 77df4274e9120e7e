"""Reward model: train it on scores or pairs, then evaluate it and its sanity before PPO may use it."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from manners.data.corruptions import MISPLACED, corrupted_replies
from manners.data.mixture import DATASET
from manners.data.prompt_groups import PromptGroup, collate_groups, group_by_prompt
from manners.data.reward_examples import pair_examples, scored_examples
from manners.data.types import (
    Conversation,
    Message,
    PreferencePair,
    ScoredReply,
    preference_pairs,
    scored_replies,
)
from manners.errors import MannersError
from manners.evaluation.evaluate import metric_key
from manners.evaluation.metrics.reward_quality import (
    PairwiseQuality,
    RegressionQuality,
    pairwise_quality,
    prompt_ids,
    regression_quality,
)
from manners.evaluation.metrics.reward_sanity import SanityResult, check_sanity, good_replies
from manners.evaluation.reports import reward_report
from manners.methods.lightning import TrainResult
from manners.methods.reward import RewardModule, collate_features, predict_scores, read_features
from manners.models import lora
from manners.models.frozen_reward import FrozenRewardModel, load_frozen_base
from manners.models.policy import disable_dropout
from manners.models.reward_model import (
    ScoreNormalizer,
    head_modules,
    load_reward_base,
    load_reward_model,
    supports_shared_prompts,
)
from manners.pipeline.stages import reporting
from manners.pipeline.stages.context import (
    RunContext,
    StageResult,
    configured_tokenizer,
    console,
    fit_module,
    gather_full_model,
    loading_kwargs,
    prepare_model,
    report_truncation,
)
from manners.pipeline.stages.reporting import RewardEvaluation
from manners.pipeline.stages.saving import CHECKED_ROWS, check_same, release_memory, save_config

SANITY_FILE = "sanity.json"  # in the model directory: PPO refuses a reward model that failed
Score = Callable[[Sequence[tuple[list[Message], str]]], list[float]]


def train_reward_model(run: RunContext) -> StageResult:
    """Train a scalar head on the base model: regression of scores, or Bradley-Terry on pairs."""
    cfg, m = run.cfg, run.cfg.method
    tokenizer = configured_tokenizer(cfg)
    make_network = partial(load_reward_network, run, tokenizer)
    network = make_network()
    if m.loss != "pairwise" and m.ranking_coef and not supports_shared_prompts(network):
        raise MannersError(
            f"method.ranking_coef={m.ranking_coef} compares the replies to a prompt in one row, and {cfg.model.name} "
            "cannot read them so: it takes a decoder with full attention in every layer, and "
            "model.attn_implementation=sdpa. Without it: method.ranking_coef=0.",
            "method.ranking_coef",
        )
    good_replies(*sanity_replies(run), cfg.seed)  # raises now where the sanity check could not be done later
    pairwise = m.loss == "pairwise"
    if pairwise:
        normalizer = ScoreNormalizer(scale=margin_scale(preference_pairs(run.splits.train)))
    else:
        normalizer = ScoreNormalizer.from_scores([r.score for r in rescaled_replies(run.splits.train)])
    if not pairwise and (own := sum(r.by_policy for r in scored_replies(run.splits.train))):
        console.print(f"{own} replies of a policy (manner: policy) are scored on a scale of their own", highlight=False)
    share = supports_shared_prompts(network)
    examples = build_examples(run, run.splits.train, tokenizer, normalizer, share)
    eval_examples = build_examples(run, run.eval_rows, tokenizer, normalizer, share)
    num_truncated = [e.num_truncated for group in examples for e in group.examples]
    report_truncation(num_truncated, f"method.max_length={m.max_length}")
    if isinstance(network, FrozenRewardModel):
        result = fit_head(run, network, examples, eval_examples, tokenizer.pad_token_id)
    else:
        module = partial(RewardModule, network, m.loss, m.ranking_coef)
        collate = partial(collate_groups, pad=tokenizer.pad_token_id, share_prompt=share)
        result = fit_module(run, module, examples, eval_examples, collate)

    if run.process_group.rank:
        return StageResult(result.best_loss, result.best_step)
    network = gather_full_model(run, network, make_network)
    network.to(run.device.kind)  # Lightning leaves it on the CPU
    predict: Score = partial(predict_scores, network, tokenizer, m.max_length, show="scoring")
    if pairwise:
        normalizer = unit_normalizer(run, predict)

    def score(replies: Sequence[tuple[list[Message], str]]) -> list[float]:
        return [normalizer.to_score(output) for output in predict(replies)]

    evaluation = evaluate_reward_model(run, score)
    sanity = check_sanity(score, *sanity_replies(run), cfg.seed)
    run.logger.log(evaluation.quality.metrics("after") | sanity.metrics("after"), result.steps)
    save_reward_model(run, network, tokenizer, normalizer, sanity)
    by_dataset = evaluate_by_dataset(run, score)
    for name, quality in by_dataset.items():
        run.logger.log(quality.metrics(f"after/{metric_key(name)}"), result.steps)
    lines = [f"{name}: {quality_headline(quality)}" for name, quality in by_dataset.items()]
    reporting.report_reward_model(run, evaluation, sanity, result.best_step, lines)
    return StageResult(result.best_loss, result.best_step, reward_headline(evaluation.quality, sanity))


def load_reward_network(run: RunContext, tokenizer: Any) -> Any:
    """The base model with a fresh score head and adapter, as training starts from it."""
    m = run.cfg.model
    if run.cfg.adapter.kind == "frozen":
        return load_frozen_base(m.name, m.revision, m.attn_implementation).to(run.device.kind)
    network: Any = load_reward_base(
        m.name, tokenizer, m.revision, m.attn_implementation, **loading_kwargs(run.cfg, run.device)
    )
    if run.cfg.method.disable_dropout:
        disable_dropout(network)
    return prepare_model(run.cfg, network, run.device, task_type="SEQ_CLS", modules_to_save=head_modules(network))


def fit_head(
    run: RunContext, network: FrozenRewardModel, groups: list[PromptGroup], eval_groups: list[PromptGroup], pad: int
) -> TrainResult:
    """Train the head of a frozen base on what the base says of each reply, which is computed once."""
    share = supports_shared_prompts(network)
    items, eval_items = (read_features(network, part, pad, share) for part in (groups, eval_groups))
    network.head.standardize_by(torch.cat([item.features for item in items]))
    module = partial(RewardModule, network.head, run.cfg.method.loss)
    result = fit_module(run, module, items, eval_items, collate_features)
    run.directory.update_state(tokens=sum(group.length for group in groups))  # which the base has read
    return result


def build_examples(
    run: RunContext, rows: list[Conversation], tokenizer: Any, normalizer: ScoreNormalizer, share: bool
) -> list[PromptGroup]:
    """Pairs, or scored replies, by prompt. Training rows get corrupted replies besides, as the worst ones."""
    m, decoder = run.cfg.method, run.cfg.model.decoder
    ratio = m.corruption_ratio if rows is run.splits.train else 0.0
    if m.loss == "pairwise":
        pairs = [replace(pair, margin=pair.margin / normalizer.scale) for pair in preference_pairs(rows)]
        for good, bad in corrupted(replies_of_pairs(pairs), ratio / 2, run.cfg.seed, m.corruption_kinds):
            pairs.append(PreferencePair(good.messages, good.reply, bad.reply))
        examples = pair_examples(pairs, tokenizer, m.max_length, decoder)
    else:
        scored = rescaled_replies(rows)
        scored = scored + [bad for _, bad in corrupted(scored, ratio, run.cfg.seed, m.corruption_kinds)]
        examples = scored_examples(scored, tokenizer, m.max_length, decoder, normalizer.to_target)
    return [PromptGroup([examples[i] for i in group], share) for group in group_by_prompt(examples, share)]


def rescaled_replies(rows: list[Conversation]) -> list[ScoredReply]:
    """The scored replies of ``rows``, those of policies with the mean and deviation that the written ones have.

    Most replies of a small policy are poor. On one scale with written replies, what a reward model learns first is who
    wrote a reply, which says nothing about which of the policy's replies is the better one.
    """
    scored = scored_replies(rows)
    own, written = ([r.score for r in scored if r.by_policy == wanted] for wanted in (True, False))
    if len({*own}) < 2 or len({*written}) < 2:
        return scored
    of_policy, of_writers = ScoreNormalizer.from_scores(own), ScoreNormalizer.from_scores(written)
    return [replace(r, score=of_writers.to_score(of_policy.to_target(r.score))) if r.by_policy else r for r in scored]


def margin_scale(pairs: list[PreferencePair]) -> float:
    """The root mean square of the margins that are not 0: so many units of the dataset count as one logit."""
    margins = [pair.margin for pair in pairs if pair.margin]
    largest = max(margins, default=1.0)  # divided by it, no sum of squares overflows
    return largest * math.hypot(*(m / largest for m in margins)) / math.sqrt(len(margins)) if margins else 1.0


def corrupted(
    rows: list[ScoredReply], ratio: float, seed: int, kinds: Sequence[str] | None = None
) -> list[tuple[ScoredReply, ScoredReply]]:
    """``ratio`` corrupted replies for each real one, each behind the reply above the mean score that it was made of.

    They are of all kinds, or of some. A half of them are good replies to other prompts, which are the hardest to tell;
    the other kinds share the rest.
    """
    if not ratio:
        return []
    mean = sum(r.score for r in rows) / len(rows)
    good, count, rng = [r for r in rows if r.score >= mean], round(ratio * len(rows)), random.Random(f"{seed}/spoilt")
    made = [c for c in corrupted_replies(good, rows, f"train/{seed}") if kinds is None or c[0] in kinds]
    misplaced, others = (
        [(original, bad) for kind, original, bad in made if (kind == MISPLACED) == wanted] for wanted in (True, False)
    )
    rng.shuffle(misplaced)
    rng.shuffle(others)
    misplaced = misplaced[: count // 2 if others else count]
    return [*misplaced, *others[: count - len(misplaced)]]


def unit_normalizer(run: RunContext, predict: Score) -> ScoreNormalizer:
    """Converts scores learned from pairs, which have no unit, to mean 0 and deviation 1 on training replies."""
    sample = preference_pairs(run.splits.train)[:500]
    outputs = predict([(p.messages, reply) for p in sample for reply in (p.chosen, p.rejected)])
    spread = ScoreNormalizer.from_scores(outputs)
    return ScoreNormalizer(-spread.mean / spread.scale, 1 / spread.scale)


def evaluate_reward_model(run: RunContext, score: Score) -> RewardEvaluation:
    """The quality of the scores on the test rows, and the worst errors."""
    seed = run.cfg.seed
    if run.cfg.method.loss == "pairwise":
        pairs = preference_pairs(run.test_rows)
        chosen = score([(p.messages, p.chosen) for p in pairs])
        rejected = score([(p.messages, p.rejected) for p in pairs])
        quality = pairwise_quality(chosen, rejected, prompt_ids([p.messages for p in pairs]), seed)
        return RewardEvaluation(quality, reward_report.worst_pairs(pairs, chosen, rejected, score))
    train_scores = [r.score for r in scored_replies(run.splits.train) if not r.by_policy]
    mean, scored = sum(train_scores) / len(train_scores), scored_replies(run.test_rows)
    own, rows = ([r for r in scored if r.by_policy == wanted] for wanted in (True, False))
    predicted, true = score([(r.messages, r.reply) for r in rows]), [r.score for r in rows]
    groups, lengths = prompt_ids([r.messages for r in rows]), [len(r.reply.split()) for r in rows]
    regression = regression_quality(predicted, true, groups, lengths, mean, seed)
    if own:  # on a scale of their own, of which the order alone counts
        scores, by_prompt = score([(r.messages, r.reply) for r in own]), prompt_ids([r.messages for r in own])
        on_policy = regression_quality(scores, [r.score for r in own], by_prompt, seed=seed)
        regression = replace(regression, policy_replies=len(own), policy_spearman=on_policy.spearman)
    return RewardEvaluation(regression, reward_report.worst_errors(rows, predicted, score), predicted, true)


def evaluate_by_dataset(run: RunContext, score: Score) -> dict[str, RegressionQuality | PairwiseQuality]:
    """The quality of the scores on the test rows of each dataset of a mixture; empty for one dataset."""
    names = [row.metadata.get(DATASET, "") for row in run.test_rows]
    parts = {d: [r for r, n in zip(run.test_rows, names, strict=True) if n == d] for d in dict.fromkeys(names) if d}
    return {
        name: evaluate_reward_model(replace(run, splits=replace(run.splits, test=rows)), score).quality
        for name, rows in parts.items()
    }


def sanity_replies(run: RunContext) -> tuple[list[ScoredReply], list[ScoredReply]]:
    """Test replies to corrupt, and training replies that lend their words."""
    if run.cfg.method.loss != "pairwise":
        return scored_replies(run.test_rows), scored_replies(run.splits.train)
    test, train = (replies_of_pairs(preference_pairs(rows)) for rows in (run.test_rows, run.splits.train))
    return test, train


def replies_of_pairs(pairs: Sequence[PreferencePair]) -> list[ScoredReply]:
    """The replies of pairs, of which the chosen ones count as good."""
    return [ScoredReply(p.messages, r, s) for p in pairs for r, s in ((p.chosen, 1.0), (p.rejected, 0.0))]


def save_reward_model(
    run: RunContext, network: Any, tokenizer: Any, normalizer: ScoreNormalizer, sanity: SanityResult
) -> None:
    """Network, tokenizer, normalizer, sanity result and config, in the model directory.

    Raises MannersError where the network that is loaded from there gives other scores.
    """
    out, m, max_length = run.path / "model", run.cfg.model, run.cfg.method.max_length
    batch = [(r.messages, r.reply) for r in sanity_replies(run)[0][:CHECKED_ROWS]]
    scores = predict_scores(network, tokenizer, max_length, batch)
    lora.save_pretrained(network, out)
    tokenizer.save_pretrained(out)
    normalizer.save(out)
    (out / SANITY_FILE).write_text(json.dumps(asdict(sanity), indent=1, ensure_ascii=False))
    save_config(run.cfg, out)
    release_memory(run, network)
    saved = load_reward_model(out, m.revision, m.attn_implementation, **loading_kwargs(run.cfg, run.device))
    saved = saved if run.cfg.adapter.quantization != "none" else saved.to(run.device.kind)
    check_same("score", scores, predict_scores(saved, tokenizer, max_length, batch), out)


def reward_headline(quality: RegressionQuality | PairwiseQuality, sanity: SanityResult) -> str:
    """The one line that lineage and sweeps show."""
    return f"{quality_headline(quality)}, sanity {sanity.accuracy.value:.1%}"


def quality_headline(quality: RegressionQuality | PairwiseQuality) -> str:
    """The quality in one line."""
    if isinstance(quality, PairwiseQuality):
        return f"pair accuracy {quality.accuracy.value:.1%}"
    line = f"Spearman {quality.spearman.value:.2f}" if quality.spearman else f"MSE {quality.mse.value:.3f}"
    line += f" ({p.value:.2f} on a policy's own replies)" if (p := quality.policy_spearman) else ""
    return line + (f", pair accuracy {quality.pair_accuracy.value:.1%}" if quality.pair_accuracy else "")
