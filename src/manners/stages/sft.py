"""Supervised fine-tuning: the model answers, learns from the conversations, and answers again."""

from functools import partial
from typing import Any

from manners.data.batches import collate, pack
from manners.data.encode import encode
from manners.data.readers import eval_prompts
from manners.errors import MannersError
from manners.evaluation import figures
from manners.evaluation.measure import Measured, measure
from manners.methods.sft import SFTModule
from manners.models import adapters
from manners.stages import show
from manners.stages.run import (
    Outcome,
    Run,
    adapt,
    in_one,
    learn,
    load_base,
    load_tokenizer,
    save_language_model,
    waiting,
)


def train(run: Run) -> Outcome:
    cfg, m = run.cfg, run.cfg.method
    tokenizer = load_tokenizer(cfg)
    check_end(cfg.dataset.end_of_conversation, tokenizer)
    make = partial(network, run, tokenizer)
    model = make()
    if run.world.rank == 0:
        before = Measured.from_json(run.once("before", lambda: answer(run, model, tokenizer).to_json()))
        run.tracker.log(before.metrics("before"), 0)

    examples = encode(run.splits.train, tokenizer, cfg.dataset.train_on, m.max_length)
    held_out = encode(run.splits.validation or run.splits.test, tokenizer, cfg.dataset.train_on, m.max_length)
    examples = pack(examples, m.max_length) if m.packing else examples
    together = partial(collate, pad=tokenizer.pad_token_id)
    fitted = learn(run, partial(SFTModule, model), examples, held_out, together)

    if run.world.rank:
        return Outcome(fitted.best_loss, fitted.best_step, "")
    model = in_one(run, model, make)
    after = answer(run, model, tokenizer)
    run.tracker.log(after.metrics("after"), fitted.steps)
    save_language_model(cfg, model, tokenizer, run.path / "model")
    curve = figures.learning_curve(run.path / "metrics.jsonl", fitted.best_step, run.path / "learning_curve.png")
    show.before_after(run, before, after, [curve])
    return Outcome(fitted.best_loss, fitted.best_step, after.headline(before))


def network(run: Run, tokenizer: Any) -> Any:
    """The base with its adapter, as training finds it."""
    cfg = run.cfg
    model = load_base(cfg, run.device)
    adapters.grow(model, tokenizer)
    tokens = tokenizer.convert_tokens_to_ids(list(cfg.model.added_tokens))
    return adapt(cfg, model, run.device, tokens=tokens)


def check_end(words: str | None, tokenizer: Any) -> None:
    """The user's sign that a conversation is over must be one token, or the model would only learn to spell it."""
    if words and len(tokenizer(words, add_special_tokens=False)["input_ids"]) != 1:
        known = " ".join(tokenizer.all_special_tokens)
        raise MannersError(f"dataset.end_of_conversation={words} is no single token of this model. Known: {known}")


def answer(run: Run, model: Any, tokenizer: Any) -> Measured:
    """The model on the held-out rows: the same prompts, decoding and seed before and after training."""
    cfg, held_out = run.cfg, run.splits.test or run.splits.validation
    if cfg.adapter.quantization == "none":
        model.to(run.device.kind)
    examples = encode(held_out, tokenizer, cfg.dataset.train_on, cfg.method.get("max_length", 512))
    fixed = eval_prompts(cfg.dataset)
    return measure(model, tokenizer, waiting(cfg, held_out), fixed, examples, **show.measure_settings(cfg))
