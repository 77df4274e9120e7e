"""SFT: evaluate the model, train it on the conversations, evaluate it again."""

from functools import partial
from typing import Any

from manners.data.batching import collate, pack
from manners.data.loading import eval_prompts
from manners.data.tokenize import tokenize
from manners.errors import MannersError
from manners.evaluation.evaluate import MAX_LOSS_LENGTH, EvalResult, evaluate
from manners.evaluation.reports import figures
from manners.methods.sft import SFTModule
from manners.models import lora
from manners.pipeline.stages import reporting
from manners.pipeline.stages.context import (
    RunContext,
    StageResult,
    configured_tokenizer,
    fit_module,
    gather_full_model,
    load_base,
    prepare_model,
    report_truncation,
)
from manners.pipeline.stages.saving import save_policy


def train_sft(run: RunContext) -> StageResult:
    """Train the base model, or an adapter on it, by cross-entropy on the tokens of ``dataset.loss_roles``."""
    cfg, m = run.cfg, run.cfg.method
    tokenizer = configured_tokenizer(cfg)
    check_conversation_eos(cfg.dataset.conversation_eos, tokenizer)
    make_model = partial(load_network, run, tokenizer)
    model = make_model()
    if run.process_group.rank == 0:
        reporting.report_cut_prompts(run, model, tokenizer)
        before = reporting.evaluate_before(run, lambda: evaluate_on_test(run, model, tokenizer))

    examples = tokenize(run.splits.train, tokenizer, cfg.dataset.loss_roles, m.max_length)
    eval_examples = tokenize(run.eval_rows, tokenizer, cfg.dataset.loss_roles, m.max_length)
    report_truncation([e.num_truncated for e in examples], f"method.max_length={m.max_length}")
    examples = pack(examples, m.max_length) if m.packing else examples
    collate_rows = partial(collate, pad=tokenizer.pad_token_id)
    module = partial(SFTModule, model, neftune_noise_alpha=m.neftune_noise_alpha)
    result = fit_module(run, module, examples, eval_examples, collate_rows)

    if run.process_group.rank:
        return StageResult(result.best_loss, result.best_step)
    model = gather_full_model(run, model, make_model)
    after = evaluate_on_test(run, model, tokenizer)
    run.logger.log(after.metrics("after"), result.steps)
    save_policy(run, model, tokenizer)
    curve = figures.learning_curve(run.path / "metrics.jsonl", result.best_step, run.path / "learning_curve.png")
    summary = after.headline(before)
    reporting.report_before_after(run, before, after, summary, [curve])
    return StageResult(result.best_loss, result.best_step, summary)


def load_network(run: RunContext, tokenizer: Any) -> Any:
    """The base model with a fresh adapter, as training starts from it."""
    model = load_base(run.cfg, run.device)
    lora.resize_embeddings(model, tokenizer)
    added = tokenizer.convert_tokens_to_ids(list(run.cfg.model.added_tokens))
    return prepare_model(run.cfg, model, run.device, trainable_token_indices=added)


def check_conversation_eos(text: str | None, tokenizer: Any) -> None:
    """The user's end-of-conversation marker must be one token, or the model would learn to spell it.

    Raises MannersError where it is not.
    """
    if text and len(tokenizer(text, add_special_tokens=False)["input_ids"]) != 1:
        known = " ".join(tokenizer.all_special_tokens)
        raise MannersError(f"dataset.conversation_eos={text} is no single token of this model. Known: {known}")


def evaluate_on_test(run: RunContext, model: Any, tokenizer: Any) -> EvalResult:
    """The model on the test rows: the same prompts, decoding and seed before and after training."""
    cfg = run.cfg
    if cfg.adapter.quantization == "none":
        model.to(run.device.kind)
    examples = tokenize(run.loss_rows, tokenizer, cfg.dataset.loss_roles, cfg.method.get("max_length", MAX_LOSS_LENGTH))
    fixed = eval_prompts(cfg.dataset)
    prompts = reporting.test_prompts(run)
    with run.device.autocast():
        return evaluate(model, tokenizer, prompts, fixed, examples, **reporting.evaluate_settings(run))
