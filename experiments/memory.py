"""Foreseen against measured peak memory, for ``experiments/memory.md``: ``python experiments/memory.py``.

Random Qwen2 models of three sizes (and a GPT-2 with a LoRA, which no number was fitted to), rows of random words;
each case is measured in a process of its own. Takes about twenty minutes on one core.
"""

import json
import random
import tempfile
from pathlib import Path

import hydra
import torch
from hydra.core.plugins import Plugins
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from manners.cli.main import Recipes
from manners.config import compose, schema
from manners.fits import answer, dividing, foresight, probe
from manners.models.loading import load_tokenizer
from manners.pipeline.dependencies import Stage
from manners.runtime.paths import CONF

SIZES = {"128x4": (128, 4), "256x6": (256, 6), "512x8": (512, 8)}
METHODS = {
    "sft": ["adapter=none"],
    "reward": ["adapter=none"],
    "ppo": ["method.batch_size=24", "method.num_eval_prompts=16", "method.response_length=24"],
}
SMALL = ["evaluation.max_new_tokens=16", "evaluation.batch_size=16", "hardware.accelerator=cpu"]


def main() -> None:
    schema.register_schemas()
    Plugins.instance().register(Recipes)
    with tempfile.TemporaryDirectory() as folder, hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        here = Path(folder)
        (here / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows()))
        print("| model | method | foreseen, MB | measured, MB | apart | live tensors | libraries, measured |")
        print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for name, (width, layers) in SIZES.items():
            save(qwen2(width, layers), here / name)
            for method, overrides in METHODS.items():
                compare(here, name, method, overrides)
        save(gpt2(), here / "gpt2")
        compare(here, "gpt2", "sft", ["adapter=lora", "method.max_length=96"])


def compare(here: Path, name: str, method: str, more: list[str]) -> None:
    overrides = [
        f"method={method}", f"model.name={here / name}", "model.chat_template=chatml", "dataset=jsonl",
        f"dataset.path={here / 'rows.jsonl'}", "dataset.sample_types=[chat,prompt,scored]", *SMALL, *more,
    ]  # fmt: skip
    cfg = compose.compose("train", overrides)
    stage = Stage(cfg, overrides)
    beside = next((n.cfg for n in compose.dependencies(cfg, overrides) if n.role == "reward"), None)
    measured = probe.probe(dividing.apart(cfg, 1), stage.splits, beside)
    found = foresight.foresee(dividing.apart(cfg, 1), stage, answer.wanted(cfg)[0], beside)
    foreseen = found.total - found.parts[foresight.RUNTIME] + measured.baseline + foresight.AT_WORK
    live = foreseen - measured.baseline - foresight.AT_WORK - found.parts[foresight.SLACK]
    sizes = " | ".join(f"{size / 1e6:.0f}" for size in (foreseen, measured.peak))
    apart = f"{foreseen / measured.peak - 1:+.1%} | {live / 1e6:.0f} | {measured.baseline / 1e6:.0f}"
    print(f"| {name} | {method} | {sizes} | {apart} |", flush=True)


def rows() -> list[dict]:
    rng, words = random.Random(0), ["the", "hare", "eats", "grass", "who", "says", "that", "it", "does", "not"]
    said = lambda least, most: " ".join(rng.choices(words, k=rng.randint(least, most)))  # noqa: E731
    return [
        {
            "messages": [{"role": "user", "content": said(40, 80)}, {"role": "assistant", "content": said(25, 50)}],
            "score": round(rng.random(), 2),
        }
        for _ in range(160)
    ]


def qwen2(width: int, layers: int) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(load_tokenizer("tiny")), hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=layers, num_attention_heads=width // 64, num_key_value_heads=width // 64,
        max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip


def gpt2() -> GPT2Config:
    return GPT2Config(vocab_size=len(load_tokenizer("tiny")), n_embd=384, n_layer=6, n_head=6)


def save(shape, folder: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    load_tokenizer("tiny").save_pretrained(folder)


if __name__ == "__main__":
    main()
