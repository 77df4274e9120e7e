"""What both sides of the generation line share: the model, the prompts, where replies end, and what is measured."""

import argparse
import json
import os
import resource
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
# The libraries read these variables while they are imported, hence the order.
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

PACKAGE = Path(__file__).resolve().parents[3] / "src" / "manners"
TINY = PACKAGE / "models" / "tiny"
CORPUS = PACKAGE / "data" / "corpora" / "strictbot" / "generated.jsonl"
LARGE = 151_936  # tokens: Qwen2.5's vocabulary
BATCH, NEW_TOKENS, PAD = 64, 48, 0
ALIKE = {"own": BATCH, "large": 16}  # prompts whose likeliest replies must be alike on both sides
Ids = list[list[int]]
# (model, prompts, stops, seed) → replies; no seed takes the likeliest tokens.
Reply = Callable[[torch.nn.Module, Ids, list[int], int | None], Ids]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"Replies to {BATCH} prompts at once, measured.")
    parser.add_argument("--vocabulary", choices=["own", "large"], default="own", help="the tiny model's, or Qwen2.5's")
    parser.add_argument("--no-stop", action="store_true", help=f"no token ends a reply: all have {NEW_TOKENS}")
    parser.add_argument("--batches", type=int, default=3, help="measured ones; one before them warms up")
    parser.add_argument("--seed", type=int, default=0, help="which prompts, and what is drawn")
    return parser.parse_args()


def load(vocabulary: str) -> torch.nn.Module:
    """The packaged tiny model, or one of its shape with random weights and a large vocabulary. Both in 32 bits."""
    if vocabulary == "own":
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    else:
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(TINY)
        config.vocab_size = LARGE
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig()  # no sampling habit of the checkpoint's own
    return model.eval()


def stops(vocabulary: str, no_stop: bool) -> list[int]:
    """A random model never says its one stop token: there every sixteenth token ends a reply."""
    if no_stop:
        return []
    return [1] if vocabulary == "own" else list(range(1, LARGE, 16))


def prompts(seed: int) -> Ids:
    """Questions of the packaged corpus as the tiny model reads them, ``BATCH`` of them other ones for each seed."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    with CORPUS.open(encoding="utf-8") as file:
        chats = [row["messages"][:1] for row in map(json.loads, file) if row["split"] == "train"]
    start = BATCH * seed % (len(chats) - BATCH)
    asked = chats[start : start + BATCH]
    return [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in asked]


def measure(args: argparse.Namespace, reply: Reply) -> None:
    """Have ``reply`` answer, and print what it took as one line of JSON."""
    torch.set_num_threads(1)
    model, asked, ends = load(args.vocabulary), prompts(args.seed), stops(args.vocabulary, args.no_stop)
    greedy = reply(model, asked[: ALIKE[args.vocabulary]], ends, None)
    wall, cpu = time.perf_counter(), time.process_time()
    replies = [r for i in range(args.batches) for r in reply(model, asked, ends, args.seed * args.batches + i)]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    lengths = [len(r) for r in replies]
    found = {
        "wall_s": round(wall, 4),
        "cpu_s": round(cpu, 4),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "tokens": sum(lengths),
        "replies": len(replies),
        "mean_length": round(fmean(lengths), 3),
        "greedy": zlib.crc32(json.dumps(greedy).encode()),  # alike only where all likeliest tokens are
    }
    print(json.dumps(found))
