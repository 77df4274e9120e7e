"""What both sides of the generation line share: model, prompts, stop tokens, and the measurement."""

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
# The libraries read these variables on import.
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

PACKAGE = Path(__file__).resolve().parents[3] / "src" / "manners"
TINY = PACKAGE / "models" / "tiny"
CORPUS = PACKAGE / "data" / "corpora" / "strictbot_tiny" / "generated.jsonl"
LARGE = 151_936  # tokens: Qwen2.5's vocabulary
BATCH, NEW_TOKENS, PAD = 64, 48, 0  # 0 pads in SmolLM2 too (see ../smollm.py)
NUM_GREEDY = {"own": BATCH, "large": 16}  # prompts whose greedy replies must be equal on both sides
Ids = list[list[int]]
# (model, prompts, stop_token_ids, seed) → replies; without a seed, greedy decoding.
Generate = Callable[[torch.nn.Module, Ids, list[int], int | None], Ids]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the generation of replies to several prompts at once.")
    parser.add_argument("--model", type=Path, help="folder of another model, which then has a vocabulary of its own")
    parser.add_argument("--rows", type=int, default=BATCH, help="prompts at once")
    parser.add_argument(
        "--vocabulary",
        choices=["own", "large"],
        default="own",
        help="size of the vocabulary: the tiny model's or Qwen2.5's",
    )
    parser.add_argument("--no-stop", action="store_true", help=f"no stop tokens: all replies have {NEW_TOKENS} tokens")
    parser.add_argument("--batches", type=int, default=3, help="measured batches, after the greedy one as a warm-up")
    parser.add_argument("--seed", type=int, default=0, help="selects prompts and random numbers")
    return parser.parse_args()


def load(args: argparse.Namespace) -> torch.nn.Module:
    """The model, or the packaged tiny one's architecture with random weights and a large vocabulary; in 32 bits."""
    if args.vocabulary == "own":
        model = AutoModelForCausalLM.from_pretrained(args.model or TINY, dtype=torch.float32)
    else:
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(TINY)
        config.vocab_size = LARGE
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig()  # without the sampling settings of the checkpoint
    return model.eval()


def stop_token_ids(args: argparse.Namespace) -> list[int]:
    """A random model never generates its one stop token: there every sixteenth token ends a reply."""
    if args.no_stop:
        return []
    if args.vocabulary == "large":
        return list(range(1, LARGE, 16))
    return [AutoTokenizer.from_pretrained(args.model or TINY).eos_token_id]


def prompts(args: argparse.Namespace) -> Ids:
    """Questions of the packaged corpus with the model's chat template; other ones for each seed."""
    tokenizer = AutoTokenizer.from_pretrained(args.model or TINY)
    with CORPUS.open(encoding="utf-8") as file:
        chats = [row["messages"][:1] for row in map(json.loads, file) if row["split"] == "train"]
    start = args.rows * args.seed % (len(chats) - args.rows)
    questions = chats[start : start + args.rows]
    return [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in questions]


def measure(args: argparse.Namespace, generate: Generate) -> None:
    """Measure ``generate`` and print one line of JSON."""
    torch.set_num_threads(1)
    model, batch, stop_ids = load(args), prompts(args), stop_token_ids(args)
    greedy = generate(model, batch[: NUM_GREEDY[args.vocabulary]], stop_ids, None)
    wall, cpu = time.perf_counter(), time.process_time()
    replies = [r for i in range(args.batches) for r in generate(model, batch, stop_ids, args.seed * args.batches + i)]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    lengths = [len(r) for r in replies]
    result = {
        "wall_s": round(wall, 4),
        "cpu_s": round(cpu, 4),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "tokens": sum(lengths),
        "replies": len(replies),
        "mean_length": round(fmean(lengths), 3),
        "greedy": zlib.crc32(json.dumps(greedy).encode()),  # a checksum: equal only where all greedy tokens are
    }
    print(json.dumps(result))
