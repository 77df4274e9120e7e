"""DPO: evaluate the policy, train it on pairs of replies with TRL, evaluate it again."""

from copy import deepcopy

from manners.data.tokenize import tokenize_pairs
from manners.data.types import preference_pairs
from manners.errors import MannersError
from manners.evaluation.reports.reward_figures import preference_curves
from manners.pipeline.stages import reporting
from manners.pipeline.stages.context import (
    RunContext,
    StageResult,
    configured_tokenizer,
    prepare_model,
    report_truncation,
    starting_policy,
    total_steps,
)
from manners.pipeline.stages.saving import save_policy
from manners.pipeline.stages.sft import evaluate_on_test

RISE_OF_LOSS = 1.0  # nats per token on replies of the data, which the policy may move away from
NOT_FOR_TRL = ("name", "sample_type", "max_length", "num_train_epochs", "max_steps")


def train_dpo(run: RunContext) -> StageResult:
    """Train the SFT policy, or an adapter on it, to prefer the chosen reply of each pair.

    Raises MannersError where there are no pairs to train on or to hold out.
    """
    from manners.methods import dpo  # TRL takes seconds to import, which the other methods need not wait for

    cfg, m = run.cfg, run.cfg.method
    tokenizer = configured_tokenizer(cfg)
    train_pairs, eval_pairs = preference_pairs(run.splits.train), preference_pairs(run.eval_rows)
    if not train_pairs or not eval_pairs:
        raise MannersError(
            "no pairs are left to train on, or none to hold out: add rows, or set dataset.max_rows higher."
        )
    policy = starting_policy(run)
    # TRL would load it anew by the name in its config, which after an SFT run is the base's.
    reference = deepcopy(policy).requires_grad_(False) if cfg.adapter.kind == "none" else None
    model = prepare_model(cfg, policy, run.device)
    reporting.report_cut_prompts(run, model, tokenizer)
    before = reporting.evaluate_before(run, lambda: evaluate_on_test(run, model, tokenizer))

    rows, eval_rows = (tokenize_pairs(pairs, tokenizer, m.max_length) for pairs in (train_pairs, eval_pairs))
    report_truncation([row["num_truncated"] for row in rows], f"method.max_length={m.max_length}")
    steps = total_steps(cfg, len(rows))
    settings = {name: value for name, value in m.items() if name not in NOT_FOR_TRL}
    settings["eval_steps"] = run.eval_steps(steps)
    trainer = dpo.make_dpo_trainer(
        model, reference, tokenizer, rows, eval_rows, run.path, run.device, cfg.seed,
        max_steps=steps, microbatch_size=run.directory.state.microbatch_size, **settings,
    )  # fmt: skip
    result = dpo.fit_dpo(trainer, run.logger.log)
    lengths = [2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows]
    pairs_seen = result.steps * m.per_device_train_batch_size * m.gradient_accumulation_steps
    run.directory.update_state(tokens=round(sum(lengths) / len(lengths) * pairs_seen))  # exact for whole epochs

    after = evaluate_on_test(run, model, tokenizer)
    run.logger.log(after.metrics("after"), result.steps)
    save_policy(run, model, tokenizer)
    curves = preference_curves(run.path / "metrics.jsonl", result.best_step, run.path / "curves.png")
    summary = after.headline(before, RISE_OF_LOSS)
    reporting.report_before_after(run, before, after, summary, [curves])
    return StageResult(result.best_loss, result.best_step, summary)
