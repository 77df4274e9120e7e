"""Finished runs without their training: random bases, adapters that do something, folders, and their export."""

import json

import torch
from transformers import AutoModelForCausalLM

from manners.evaluation.evaluate import EvalResult, Generation
from manners.evaluation.reports import before_after
from manners.evaluation.stats import Estimate
from manners.export import __main__ as command
from manners.models import loading
from manners.models.lora import prepare_for_training, trainable_parameters
from manners.pipeline.stages.context import save_config, save_language_model
from tests.configs import changed
from tests.families import language_model

IDS = torch.arange(2, 42)[None]
ASKED = [[{"role": "user", "content": text}] for text in ("What is a hare?", "The lion is a fish.", "Why?")]
BEFORE = EvalResult(
    Estimate(2.5, 2.25, 2.75), Estimate(0.5, 0.4, 0.6), [Generation("What is a hare?", "A bird.", True)]
)
AFTER = EvalResult(
    Estimate(1.25, 1.125, 1.375), Estimate(0.9, 0.8, 1), [Generation("What is a hare?", "A | mammal.", True)]
)
LINE = r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|"  # of a table: name, before, after


def lively(model, kind="lora", seed=1, **how):
    """An adapter that does something: fresh ones have a B of zeros."""
    model = prepare_for_training(model, kind, 4, 8, 0.0, "all-linear", **how)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in trainable_parameters(model).values():
            weight.normal_(std=0.1)
    return model.eval()


def stored(tmp_path, tokenizer, family="qwen2", dtype=torch.float32, **changes):
    """A random base in a folder, with the tokenizer of the tiny one: its name."""
    place = tmp_path / f"{family}-base"
    stops = {"eos_token_id": tokenizer.eos_token_id, "vocab_size": len(tokenizer)}
    language_model(family, **stops, **changes).to(dtype).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def finished(tmp_path, cfg, name="run-1234", **state):
    """All of a run's folder but its model."""
    run = tmp_path / "runs" / name
    (run / "model").mkdir(parents=True)
    known = {"status": "finished", "stage_mark": "abc", "mlflow_run_id": name[::-1]} | state
    (run / "run.json").write_text(json.dumps(known))
    (run / "before_after.md").write_text(before_after.before_after_markdown(name, BEFORE, AFTER))
    (run / "after.json").write_text(json.dumps(AFTER.to_json()))
    (run / "lineage.md").write_text(f"  policy  sft-99  (loss 3 → 2)\n       └→ {name}  (loss 2 → 1)\n")
    save_config(cfg, run / "model")
    return run


def config(tmp_path, name, *values):
    return changed(f"model.name={name}", f"output_dir={tmp_path}", *values)


def sft(tmp_path, tokenizer, family="qwen2", dtype=torch.float32):
    """A run with a LoRA on a random model: its folder, and the model that it taught, in 32 bits."""
    name = stored(tmp_path, tokenizer, family, dtype)
    cfg = config(tmp_path, name)
    run, model = finished(tmp_path, cfg), lively(loading.load_model(name))
    save_language_model(cfg, model, tokenizer, run / "model")
    return run, model


def export(run, *more):
    """The exported folder, by the command in this process."""
    out = run.parent / "out"
    command.main([str(run), "--out", str(out), *more])
    return out


def plain(out, dtype="auto"):
    return AutoModelForCausalLM.from_pretrained(out, dtype=dtype).eval()


@torch.no_grad()
def logits(model):
    return model(IDS).logits.float()
