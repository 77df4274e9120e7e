"""The largest of Qwen2.5's sizes that trains in 8 GB and in 24 GB of a GPU, as ``estimate=true`` estimates it.

    python experiments/bench/scaling/estimate.py

No GPU is needed, and no weights: memory is counted from the models' configs, in seconds. Rows of 512 tokens, one in a
microbatch, ``hardware=cuda_8gb`` (bf16, gradient checkpointing, 8-bit optimizer states); PPO with 16 replies of 128
tokens to prompts of 256, 1024 tokens in a microbatch, scored by a function. Writes estimate.md next to this file.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

from transformers import Qwen2Config

from manners.config import compose
from manners.estimate import answer
from manners.estimate.memory import estimate_peak_memory
from manners.models.tokenizer import load_tokenizer

HERE = Path(__file__).resolve().parent
GPU_MEMORY = (8e9, 24e9)  # bytes
SIZES = {  # from their config.json: hidden size, layers, heads, key-value heads, MLP size, tied embeddings
    "0.5B": (896, 24, 14, 2, 4864, True),
    "1.5B": (1536, 28, 12, 2, 8960, True),
    "3B": (2048, 36, 16, 2, 11008, True),
    "7B": (3584, 28, 28, 4, 18944, False),
    "14B": (5120, 48, 40, 8, 13824, False),
    "32B": (5120, 64, 40, 8, 27648, False),
}
ROWS = ["dataset=jsonl", "dataset.sample_types=[conversation,prompt]", "method.max_length=512"]
SFT = ["method=sft", "method.per_device_train_batch_size=1", "method.per_device_eval_batch_size=1"]
PPO = ["method=ppo", "method.batch_size=16", "method.response_length=128", "method.microbatch_tokens=1024"]
SETUPS = {
    "SFT, all weights": [*SFT, "adapter=none"],
    "SFT, LoRA": [*SFT, "adapter=lora"],
    "SFT, QLoRA": [*SFT, "adapter=qlora"],
    "PPO, LoRA": [*PPO, "adapter=lora"],
    "PPO, QLoRA": [*PPO, "adapter=qlora"],
}
OTHERS = ["hardware=cuda_8gb", "model.chat_template=chatml", "evaluation.batch_size=1", "evaluation.max_new_tokens=128"]
REWARD = ["reward_from=none", "+method.rewards.model._target_=builtins.len", "method.num_eval_prompts=16"]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    compose.register()
    with tempfile.TemporaryDirectory() as folder, compose.hydra_context():
        place = Path(folder)
        (place / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows()), encoding="utf-8")
        for size in SIZES:
            save(size, place / size)
        needed = {
            name: {size: peak(place / size, place / "rows.jsonl", overrides) for size in SIZES}
            for name, overrides in SETUPS.items()
        }
    text = table(needed)
    (HERE / "estimate.md").write_text(text, encoding="utf-8")
    print(text)


def rows() -> list[dict]:
    """Longer than 512 tokens, to which they are truncated."""
    rng, words = random.Random(0), ["the", "hare", "eats", "grass", "who", "says", "that", "it", "does", "not"]
    text = lambda: " ".join(rng.choices(words, k=400))  # noqa: E731
    return [
        {"messages": [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]} for _ in range(24)
    ]


def save(size: str, folder: Path) -> None:
    """A model's config and a tokenizer, without weights."""
    width, layers, heads, key_heads, inner, tied = SIZES[size]
    Qwen2Config(
        vocab_size=151_936 if tied else 152_064,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=inner,
        tie_word_embeddings=tied,
        max_position_embeddings=32_768,
        architectures=["Qwen2ForCausalLM"],
    ).save_pretrained(folder)
    load_tokenizer("tiny").save_pretrained(folder)


def peak(model: Path, data: Path, setup: list[str]) -> float:
    """Bytes at the fullest moment of a run."""
    is_online = "method=ppo" in setup
    data_overrides = [*ROWS[:2], "method.max_prompt_length=256", *REWARD] if is_online else ROWS
    overrides = [*setup, *data_overrides, f"dataset.path={data}", f"model.name={model}", *OTHERS]
    cfg = compose.compose("train", overrides)
    device, _ = answer.requested_device(cfg)
    rows = cfg.method.get("per_device_train_batch_size", cfg.method.get("batch_size"))
    return estimate_peak_memory(cfg, device, answer.worst_case(cfg, device), rows, None).total


def table(needed: dict[str, dict[str, float]]) -> str:
    """Markdown: what each size needs, and the largest that fits."""
    head = ["", *SIZES, *(f"largest in {size / 1e9:.0f} GB" for size in GPU_MEMORY)]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * len(SIZES) + "---|" * len(GPU_MEMORY)]
    for name, sizes in needed.items():
        fits = [[size for size in SIZES if sizes[size] <= memory] for memory in GPU_MEMORY]
        cells = [name, *(f"{sizes[size] / 1e9:.1f}" for size in SIZES), *(f[-1] if f else "none" for f in fits)]
        lines.append(f"| {' | '.join(cells)} |")
    return "GB estimated at the fullest moment of a run.\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
