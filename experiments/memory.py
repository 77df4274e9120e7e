"""Estimated against measured peak memory, for ``experiments/memory.md``: ``python experiments/memory.py``.

Random Qwen2 models of three sizes, and a GPT-2 with a LoRA, on rows of random words; each case is measured in a process
of its own. Takes about twenty minutes on one core.
"""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from manners.config import compose
from manners.estimate import answer, profile
from manners.estimate.memory import estimate_peak_memory, reward_config
from manners.models.memory import FRAGMENTATION, LOADED_BY_TRAINING, RUNTIME
from manners.models.tokenizer import load_tokenizer
from manners.pipeline import dependencies
from manners.runtime.device import Device

SIZES = {"128x4": (128, 4), "256x6": (256, 6), "512x8": (512, 8)}
METHODS = {
    "sft": ["adapter=none"],
    "reward": ["adapter=none"],
    "ppo": ["method.batch_size=24", "method.num_eval_prompts=16", "method.response_length=24"],
}
SMALL = [
    "evaluation.max_new_tokens=16", "evaluation.batch_size=16", "hardware.accelerator=cpu",
    "method.per_device_train_batch_size=16",
]  # fmt: skip


def main() -> None:
    compose.register()
    with tempfile.TemporaryDirectory() as folder, compose.hydra_context():
        place = Path(folder)
        (place / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows()))
        print("| model | method | estimated, MB | measured, MB | error | of it tensors | libraries |")
        print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for name, (width, layers) in SIZES.items():
            save(qwen2(width, layers), place / name)
            for method, overrides in METHODS.items():
                compare(place, name, method, overrides)
        save(gpt2(), place / "gpt2")
        compare(place, "gpt2", "sft", ["adapter=lora", "method.max_length=96"])


def compare(place: Path, name: str, method: str, more: list[str]) -> None:
    """Print a row of the table: the runtime is that of the measuring process, which is known only then."""
    overrides = [
        f"method={method}", f"model.name={place / name}", "model.chat_template=chatml", "dataset=jsonl",
        f"dataset.path={place / 'rows.jsonl'}", "dataset.sample_types=[conversation,prompt,scored]",
        *(o for o in SMALL if method != "ppo" or "train_batch" not in o), *more,
    ]  # fmt: skip
    spec = compose.plan_run(overrides)
    cfg, device, reward_cfg = spec.cfg, Device("cpu", "32"), reward_config(spec)
    batch_size = 16
    measured = profile.profile(cfg, dependencies.splits_of(cfg), batch_size, reward_cfg)
    parts = estimate_peak_memory(cfg, device, answer.worst_case(cfg, device), batch_size, reward_cfg).parts
    tensors = parts.total() - parts[RUNTIME] - parts[FRAGMENTATION]
    estimated = tensors + parts[FRAGMENTATION] + measured.baseline + LOADED_BY_TRAINING
    error = f"{estimated / measured.peak - 1:+.1%}"
    sizes = [f"{size / 1e6:.0f}" for size in (estimated, measured.peak, tensors, measured.baseline)]
    print(f"| {name} | {method} | {sizes[0]} | {sizes[1]} | {error} | {sizes[2]} | {sizes[3]} |", flush=True)


def rows() -> list[dict[str, Any]]:
    rng, words = random.Random(0), ["the", "hare", "eats", "grass", "who", "says", "that", "it", "does", "not"]

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(least, most)))

    return [
        {
            "messages": [{"role": "user", "content": text(40, 80)}, {"role": "assistant", "content": text(25, 50)}],
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


def save(config: Any, folder: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    load_tokenizer("tiny").save_pretrained(folder)


if __name__ == "__main__":
    main()
