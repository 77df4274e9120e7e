"""DPO and KTO: evaluate the policy, train it with TRL on pairs of replies, or labeled ones, evaluate it again."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from manners.config.validate import check_labels
from manners.data.tokenize import tokenize_labeled_replies, tokenize_pairs
from manners.data.types import Conversation, has_loss, labeled_replies, preference_pairs
from manners.errors import MannersError
from manners.evaluation.reports.reward_figures import preference_curves
from manners.pipeline.stages import reporting
from manners.pipeline.stages.context import (
    RunContext,
    StageResult,
    configured_tokenizer,
    console,
    prepare_model,
    report_truncation,
    starting_policy,
    total_steps,
)
from manners.pipeline.stages.saving import save_policy
from manners.pipeline.stages.sft import evaluate_on_test

RISE_OF_LOSS = 1.0  # nats per token on replies of the data, which the policy may move away from
NOT_FOR_TRL = ("name", "sample_type", "num_train_epochs", "max_steps")


def train_preference(run: RunContext) -> StageResult:
    """Train the SFT policy, or an adapter on it, to prefer chosen to rejected, or desirable to undesirable replies.

    Raises MannersError where there are no samples to train on or to hold out.
    """
    from manners.methods import preference  # TRL takes seconds to import, which the other methods need not wait for

    cfg, m = run.cfg, run.cfg.method
    tokenizer = configured_tokenizer(cfg)
    samples_of: Any = labeled_replies if m.name == "kto" else preference_pairs
    train_samples, eval_samples = samples_of(run.splits.train), samples_of(run.eval_rows)
    if not train_samples or not eval_samples:
        raise MannersError(
            f"no {'labeled replies' if m.name == 'kto' else 'pairs'} are left to train on, or none to hold out: add "
            "rows, or set dataset.max_rows higher."
        )
    if m.name == "kto":
        check_labels(cfg, run.splits)
        for line in label_lines(cfg, run.splits.train):
            console.print(line, highlight=False, soft_wrap=True)
    policy = starting_policy(run)
    # TRL would load it anew by the name in its config, which after an SFT run is the base's.
    reference = deepcopy(policy).requires_grad_(False) if cfg.adapter.kind == "none" else None
    model = prepare_model(cfg, policy, run.device)
    # The reports leave out rows with an undesirable reply, as SFT and evaluate.py do: they say nothing of a good one.
    rows_with_loss = [row for row in run.test_rows if has_loss(row, cfg.dataset.loss_roles)]
    reported = replace(run, splits=replace(run.splits, test=rows_with_loss))
    reporting.report_cut_prompts(reported, model, tokenizer)
    before = reporting.evaluate_before(run, lambda: evaluate_on_test(reported, model, tokenizer))

    tokenize: Any = tokenize_labeled_replies if m.name == "kto" else tokenize_pairs
    rows, eval_rows = (tokenize(samples, tokenizer, m.max_length) for samples in (train_samples, eval_samples))
    report_truncation([row["num_truncated"] for row in rows], f"method.max_length={m.max_length}")
    steps = total_steps(cfg, len(rows))
    settings = {name: value for name, value in m.items() if name not in NOT_FOR_TRL}
    settings["eval_steps"] = run.eval_steps(steps)
    trainer = preference.make_preference_trainer(
        m.name, model, reference, tokenizer, rows, eval_rows, run.path, run.device, cfg.seed,
        max_steps=steps, microbatch_size=run.directory.state.microbatch_size, **settings,
    )  # fmt: skip
    result = preference.fit_preference(trainer, run.logger.log)
    replies = [[row[n] for n in ("chosen_ids", "rejected_ids", "completion_ids") if n in row] for row in rows]
    lengths = [sum(len(row["prompt_ids"]) + len(r) for r in of) for row, of in zip(rows, replies, strict=True)]
    samples_seen = result.steps * m.per_device_train_batch_size * m.gradient_accumulation_steps
    run.directory.update_state(tokens=round(sum(lengths) / len(lengths) * samples_seen))  # exact for whole epochs

    after = evaluate_on_test(reported, model, tokenizer)
    run.logger.log(after.metrics("after"), result.steps)
    save_policy(run, model, tokenizer)
    curves = preference_curves(run.path / "metrics.jsonl", result.best_step, run.path / "curves.png")
    summary = after.headline(before, RISE_OF_LOSS)
    reporting.report_before_after(run, before, after, summary, [curves])
    return StageResult(result.best_loss, result.best_step, summary)


def label_lines(cfg: DictConfig, rows: list[Conversation]) -> list[str]:
    """How many replies of each label KTO trains on, and a weight where the paper recommends another.

    Ethayarajh et al. 2024 (arXiv 2402.01306), equation 8: λ_D n_D / (λ_U n_U) is from 1 to 4/3. The weight that is
    raised brings it to 7/6, the middle.
    """
    m, replies = cfg.method, labeled_replies(rows)
    desirable = sum(r.label for r in replies)
    undesirable, unlabeled = len(replies) - desirable, sum(not labeled_replies([row]) for row in rows)
    lines = [f"training replies: {desirable} desirable, {undesirable} undesirable"]
    lines += [f"left out: {unlabeled} training rows: neither a label nor a pair"] if unlabeled else []
    weighted = m.desirable_weight * desirable, m.undesirable_weight * undesirable
    if all(weighted) and not 1 <= weighted[0] / weighted[1] <= 4 / 3:
        needed = f"desirable_weight={7 / 6 * weighted[1] / desirable:.3g}"
        if weighted[0] > weighted[1]:
            needed = f"undesirable_weight={6 / 7 * weighted[0] / undesirable:.3g}"
        lines.append(
            f"their weighted counts are {weighted[0]:.6g} to {weighted[1]:.6g}; the paper recommends 1:1 to 4:3, with "
            f"one of the weights at 1: method.{needed}"
        )
    return lines
