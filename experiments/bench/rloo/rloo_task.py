"""What both sides of the RLOO benchmark share: prompts, options, clock and the line of JSON that they print.

The score is that of the PPO benchmark (../ppo/task.py) and is computed from the tokens alone.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from statistics import fmean

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
import psutil
import torch

BENCH = Path(__file__).resolve().parents[1]
sys.path.append(str(BENCH / "ppo"))  # for ``task``
PACKAGE = BENCH.parents[1] / "src" / "manners"
TINY = PACKAGE / "models" / "tiny"
CORPUS = PACKAGE / "data" / "corpora" / "strictbot_tiny" / "generated.jsonl"
LARGE = 151_936  # tokens: Qwen2.5's vocabulary
BATCH, NUM_GENERATIONS, MINIBATCHES, NEW_TOKENS = 64, 4, 4, 48  # replies, per prompt, steps per epoch, tokens
LEARNING_RATE, KL_COEF, MAX_GRAD_NORM, CLIPRANGE = 3e-4, 0.05, 1.0, 0.2  # the learning rate is constant


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--iterations", type=int, default=3, help="measured ones; one before them warms up")
    parser.add_argument("--lora", action="store_true", help="LoRA of rank 16 on all linear layers, else all weights")
    parser.add_argument("--epochs", type=int, default=1, help="epochs over each rollout")
    parser.add_argument("--batch", type=int, default=BATCH, help="replies an iteration")
    parser.add_argument("--minibatches", type=int, default=MINIBATCHES, help="optimizer steps an epoch")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS, help="longest reply")
    parser.add_argument("--model", type=Path, help="folder of another model, which then has a vocabulary of its own")
    parser.add_argument("--bf16", action="store_true", help="under bf16 autocast")
    parser.add_argument("--vocabulary", choices=["own", "large"], default="own", help="the tiny model's, or Qwen2.5's")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)  # of the adapter
    return args


def model_folder(vocabulary: str) -> Path:
    """The packaged tiny model, or the same with a large vocabulary (see prepare.py)."""
    return TINY if vocabulary == "own" else Path("outputs/bench/rloo/large")


def prompts(tokenizer: object, seed: int) -> list[list[int]]:
    """Token ids of questions from the packaged corpus; other questions for each seed."""
    with CORPUS.open(encoding="utf-8") as file:
        chats = [row["messages"][:1] for row in map(json.loads, file) if row["split"] == "train"]
    start = 256 * seed % (len(chats) - 256)
    chosen = chats[start : start + 256]
    return [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in chosen]


class Clock:
    """CPU and wall seconds of each iteration, from the end of the one before."""

    def __init__(self) -> None:
        self.wall, self.cpu = [], []
        self.start_mb = psutil.Process().memory_info().rss / 2**20  # with all imports, without a model

    def start(self) -> None:
        self.last = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        now = time.perf_counter(), time.process_time()
        self.wall.append(now[0] - self.last[0])
        self.cpu.append(now[1] - self.last[1])
        self.last = now


def print_result(clock: Clock, scores: list[float], lengths: list[list[int]], kl: list[float], steps: int) -> None:
    """Print the line of JSON. The first iteration is a warm-up; times are sums over the others."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    record = {
        "cpu_s": round(sum(clock.cpu[1:]), 3),
        "wall_s": round(sum(clock.wall[1:]), 3),
        "peak_rss_mb": round(peak),
        "above_start_mb": round(peak - clock.start_mb),
        "iterations": len(clock.cpu) - 1,
        "optimizer_steps": steps,
        "score_first": round(scores[0], 4),
        "score": round(scores[-1], 4),
        "scores": [round(s, 4) for s in scores],
        "kl": round(kl[-1], 4),
        "length": round(fmean(fmean(reply_lengths) for reply_lengths in lengths), 2),
        "longest": max(max(reply_lengths) for reply_lengths in lengths),
    }
    print(json.dumps(record))
