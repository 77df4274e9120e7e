"""Finished runs without training: random base models, non-zero adapters, run directories, and their export."""

import json
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM

from manners.data.types import Conversation
from manners.evaluation.evaluate import EvalResult, Generation
from manners.evaluation.reports import before_after
from manners.evaluation.stats import Estimate
from manners.export import __main__ as command
from manners.models import loading
from manners.models.lora import prepare_for_training, trainable_parameters
from manners.pipeline.stages.saving import save_config, save_language_model
from manners.runtime.device import Device
from tests.configs import changed
from tests.families import language_model

IDS = torch.arange(2, 42)[None]
PROMPTS = [[{"role": "user", "content": text}] for text in ("What is a hare?", "The lion is a fish.", "Why?")]
BEFORE = EvalResult(
    Estimate(2.5, 2.25, 2.75), Estimate(0.5, 0.4, 0.6), [Generation("What is a hare?", "A bird.", True)]
)
AFTER = EvalResult(
    Estimate(1.25, 1.125, 1.375), Estimate(0.9, 0.8, 1), [Generation("What is a hare?", "A | mammal.", True)]
)
TABLE_ROW = r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|"  # name, before, after


def with_random_adapter(model, kind="lora", seed=1, **options):
    """The model with a random adapter; a new one has a B of zeros."""
    model = prepare_for_training(model, kind, 4, 8, 0.0, "all-linear", **options)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in trainable_parameters(model).values():
            weight.normal_(std=0.1)
    return model.eval()


def saved_base(tmp_path, tokenizer, family="qwen2", dtype=torch.float32, **overrides):
    """The path of a random base model with the tiny model's tokenizer."""
    path = tmp_path / f"{family}-base"
    stops = {"eos_token_id": tokenizer.eos_token_id, "vocab_size": len(tokenizer)}
    language_model(family, **stops, **overrides).to(dtype).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def finished_run(tmp_path, cfg, name="run-1234", **state):
    """A run directory without the model."""
    run = tmp_path / "runs" / name
    (run / "model").mkdir(parents=True)
    full_state = {"status": "finished", "weights_fingerprint": "abc", "mlflow_run_id": name[::-1]} | state
    (run / "run.json").write_text(json.dumps(full_state))
    (run / "before_after.md").write_text(
        before_after.before_after_markdown(name, BEFORE, AFTER, AFTER.headline(BEFORE))
    )
    (run / "after.json").write_text(json.dumps(AFTER.to_json()))
    (run / "lineage.md").write_text(f"  policy  sft-99  (loss 3 → 2)\n       └→ {name}  (loss 2 → 1)\n")
    save_config(cfg, run / "model")
    return run


def config(tmp_path, name, *values):
    return changed(f"model.name={name}", f"output_dir={tmp_path}", *values)


def sft_run(tmp_path, tokenizer, family="qwen2", dtype=torch.float32, **options):
    """A run with a LoRA on a random model: its directory and its model in float32."""
    name = saved_base(tmp_path, tokenizer, family, dtype)
    cfg = config(tmp_path, name)
    run, model = finished_run(tmp_path, cfg), with_random_adapter(loading.load_model(name), **options)
    save_language_model(cfg, model, tokenizer, run / "model")
    return run, model


def run_context(cfg, path, inputs):
    """What ``save_policy`` works with, with the prompts as held-out rows."""
    rows = [Conversation([*prompt, {"role": "assistant", "content": "It is so."}]) for prompt in PROMPTS]
    return SimpleNamespace(cfg=cfg, path=path, inputs=inputs, device=Device("cpu", "32"), test_rows=rows)


def export(run, *options):
    """The exported folder, by the command in this process."""
    out = run.parent / "out"
    command.main([str(run), "--out", str(out), *options])
    return out


def load_plain(out, dtype="auto"):
    return AutoModelForCausalLM.from_pretrained(out, dtype=dtype).eval()


@torch.no_grad()
def logits(model):
    return model(IDS).logits.float()
