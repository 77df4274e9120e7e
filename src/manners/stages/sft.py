"""Supervised fine-tuning: the model answers, learns from the conversations, and answers again."""

from functools import partial
from typing import Any

from manners.data.batches import Batches, collate, in_order, pack
from manners.data.encode import encode
from manners.data.readers import eval_prompts
from manners.evaluation import figures
from manners.evaluation.measure import Measured, measure
from manners.methods.fit import fit
from manners.methods.sft import SFTModule
from manners.models import base
from manners.stages import show
from manners.stages.run import (
    Outcome,
    Run,
    adapt,
    fit_settings,
    load_base,
    module_settings,
    save_language_model,
    steps_of,
)


def train(run: Run) -> Outcome:
    cfg, m = run.cfg, run.cfg.method
    tokenizer = base.load_tokenizer(cfg.model.name, cfg.model.revision, cfg.model.chat_template)
    model = adapt(cfg, load_base(cfg, run.device), run.device)
    before = Measured.from_json(run.once("before", lambda: answer(run, model, tokenizer).to_json()))
    run.tracker.log(before.metrics("before"), 0)

    examples = encode(run.splits.train, tokenizer, cfg.dataset.train_on, m.max_length)
    held_out = encode(run.splits.validation or run.splits.test, tokenizer, cfg.dataset.train_on, m.max_length)
    examples = pack(examples, m.max_length) if m.packing else examples
    steps = steps_of(cfg, len(examples))
    together = partial(collate, pad=tokenizer.pad_token_id)
    fitted = fit(
        SFTModule(model, run.tracker.log, **module_settings(cfg, steps)),
        Batches(
            examples, m.per_device_train_batch_size, together, steps, m.gradient_accumulation_steps, cfg.seed,
            m.group_by_length,
        ),
        in_order(held_out, m.per_device_eval_batch_size, together),
        run.path,
        run.device,
        **fit_settings(cfg),
    )  # fmt: skip

    after = answer(run, model, tokenizer)
    run.tracker.log(after.metrics("after"), fitted.steps)
    save_language_model(cfg, model, tokenizer, run.path / "model")
    curve = figures.learning_curve(run.path / "metrics.jsonl", fitted.best_step, run.path / "learning_curve.png")
    show.before_after(run, before, after, [curve])
    return Outcome(fitted.best_loss, fitted.best_step, after.headline(before))


def answer(run: Run, model: Any, tokenizer: Any) -> Measured:
    """The model on the held-out rows: the same prompts, decoding and seed before and after training."""
    cfg, held_out = run.cfg, run.splits.test or run.splits.validation
    if cfg.adapter.quantization == "none":
        model.to(run.device.kind)
    examples = encode(held_out, tokenizer, cfg.dataset.train_on, cfg.method.get("max_length", 512))
    return measure(model, tokenizer, held_out, examples, eval_prompts(cfg.dataset), **show.measure_settings(cfg))
