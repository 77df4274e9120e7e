"""The largest of Qwen2.5's sizes that trains in 8 GB and in 24 GB of a GPU, as ``estimate=true`` foresees it.

    python experiments/bench/scaling/fits.py

No GPU is needed, and no weights: the training is played through with the models' true shapes. Rows of 512 tokens, one
in a micro-batch, ``hardware=cuda_8gb`` (bf16, recomputed activations, 8-bit optimizer states); PPO with 16 replies of
128 tokens to prompts of 256, 1024 slots in a micro-batch, scored by a function. A way's sizes are foreseen until one is
too large; every operation of every layer is imagined, which takes minutes. Writes fits.md beside this file.
"""

import argparse
import json
import os
import random
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import hydra
from hydra.core.plugins import Plugins
from rich.progress import track
from transformers import Qwen2Config

from manners.config import compose, schema
from manners.fits import answer, dividing, foresight
from manners.models.loading import load_tokenizer
from manners.pipeline.dependencies import Stage
from manners.runtime.paths import CONF

HERE = Path(__file__).resolve().parent
ROOMS = (8e9, 24e9)  # bytes
SIZES = {  # as their config.json has it: hidden size, layers, heads, of keys and values, inner size, tied embeddings
    "0.5B": (896, 24, 14, 2, 4864, True),
    "1.5B": (1536, 28, 12, 2, 8960, True),
    "3B": (2048, 36, 16, 2, 11008, True),
    "7B": (3584, 28, 28, 4, 18944, False),
    "14B": (5120, 48, 40, 8, 13824, False),
    "32B": (5120, 64, 40, 8, 27648, False),
}
ROWS = ["dataset=jsonl", "dataset.sample_types=[chat,prompt]", "method.max_length=512"]
SFT = ["method=sft", "method.per_device_train_batch_size=1", "method.per_device_eval_batch_size=1"]
PPO = ["method=ppo", "method.batch_size=16", "method.response_length=128", "method.microbatch_tokens=1024"]
WAYS = {
    "SFT, all weights": [*SFT, "adapter=none"],
    "SFT, LoRA": [*SFT, "adapter=lora"],
    "SFT, QLoRA": [*SFT, "adapter=qlora"],
    "PPO, LoRA": [*PPO, "adapter=lora"],
    "PPO, QLoRA": [*PPO, "adapter=qlora"],
}
OTHERS = ["hardware=cuda_8gb", "model.chat_template=chatml", "evaluation.batch_size=1", "evaluation.max_new_tokens=128"]
PAID = ["reward_from=none", "+method.rewards.model._target_=builtins.len", "method.num_eval_prompts=16"]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(os.cpu_count()) as pool:
        here = Path(folder)
        (here / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows()), encoding="utf-8")
        for size in SIZES:
            save(size, here / size)
        found = dict(zip(WAYS, track(pool.map(partial(needs, here), WAYS), "foreseeing", total=len(WAYS)), strict=True))
    text = table(found)
    (HERE / "fits.md").write_text(text, encoding="utf-8")
    print(text)


def needs(here: Path, way: str) -> dict[str, float]:
    """Bytes by size, up to the first that is more than the largest room."""
    schema.register_schemas()
    Plugins.instance().register(compose.UserConfigDir)
    found: dict[str, float] = {}
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for size in SIZES:
            found[size] = foreseen(here / size, here / "rows.jsonl", WAYS[way])
            if found[size] > max(ROOMS):
                break
    return found


def rows() -> list[dict]:
    """Some longer than 512 tokens, so that the longest that are left have just as many."""
    draw, words = random.Random(0), ["the", "hare", "eats", "grass", "who", "says", "that", "it", "does", "not"]
    said = lambda: " ".join(draw.choices(words, k=400))  # noqa: E731
    return [
        {"messages": [{"role": "user", "content": said()}, {"role": "assistant", "content": said()}]} for _ in range(24)
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


def foreseen(model: Path, data: Path, way: list[str]) -> float:
    """Bytes at the run's fullest moment."""
    paid = PAID if "method=ppo" in way else []
    rows = ROWS if not paid else [*ROWS[:2], "method.max_prompt_length=256"]
    overrides = [*way, *rows, f"dataset.path={data}", f"model.name={model}", *OTHERS, *paid]
    cfg = compose.compose("train", overrides)
    return foresight.foresee(dividing.apart(cfg, 1), Stage(cfg, overrides), answer.wanted(cfg)[0], None).total


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown: what each size needs, and the largest that fits."""
    head = ["", *SIZES, *(f"largest in {room / 1e9:.0f} GB" for room in ROOMS)]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * len(SIZES) + "---|" * len(ROOMS)]
    for way, sizes in found.items():
        needs = [f"{sizes[size] / 1e9:.1f}" if size in sizes else "" for size in SIZES]
        largest = [max((s for s in sizes if sizes[s] <= room), key=list(SIZES).index, default="none") for room in ROOMS]
        lines.append(f"| {' | '.join([way, *needs, *largest])} |")
    return "GB foreseen at the fullest moment of a run.\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
