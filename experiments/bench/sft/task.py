"""What the sides of the SFT line share: options, rows, model, clock and held-out loss.

This module does not import the package, so that the peers are independent of it.
"""

import argparse
import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

LEARNING_RATE, MAX_GRAD_NORM = 5e-4, 1.0  # constant learning rate; Adam with torch's defaults
HELD_OUT = 12  # rows at the end of the file that no side trains on
IGNORE_INDEX = -100

Row = dict[str, list[int]]  # input_ids and labels, each (T,): not shifted, IGNORE_INDEX where there is no loss


def arguments(description: str, *switches: str) -> argparse.Namespace:
    """The options of every side; ``switches`` are flags of one side (with their aliases, after a space)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--rows", type=Path, required=True, help="JSON Lines of input_ids and labels")
    parser.add_argument(
        "--lora", action="store_true", help="LoRA of rank 16 on all linear layers, instead of full fine-tuning"
    )
    parser.add_argument("--steps", type=int, default=8, help="measured optimizer steps")
    parser.add_argument("--batch", type=int, default=8, help="rows per optimizer step")
    parser.add_argument("--bf16", action="store_true", help="train and measure the loss under bf16 autocast")
    parser.add_argument("--seed", type=int, default=0, help="selects the rows and their order")
    for switch in switches:
        parser.add_argument(*switch.split(), action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)  # for the initial weights of an adapter
    args.start_mb = psutil.Process().memory_info().rss / 2**20  # with all imports, without a model
    return args


def rows(args: argparse.Namespace) -> tuple[list[Row], list[Row], list[Row]]:
    """Warm-up rows for one step, measured rows and held-out rows: the same on all sides."""
    lines = args.rows.read_text(encoding="utf-8").splitlines()
    all_rows = [json.loads(line) for line in lines]
    sample = random.Random(args.seed).sample(all_rows[:-HELD_OUT], args.batch * (args.steps + 1))
    return sample[: args.batch], sample[args.batch :], all_rows[-HELD_OUT:]


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model in 32 bits, without an adapter, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(args.model)


def autocast(args: argparse.Namespace) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=args.bf16)


def lora() -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")


class Clock:
    """CPU and wall seconds between ``start`` and ``stop``."""

    def start(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self.cpu_s, self.wall_s = time.process_time() - self.cpu, time.perf_counter() - self.wall


@torch.no_grad()
def loss(model: Any, held_out: list[Row], args: argparse.Namespace) -> float:
    """Nats per token that carries loss, over the held-out rows, one row at a time."""
    model.eval()
    total, count = 0.0, 0
    for row in held_out:
        labels = torch.tensor(row["labels"][1:])
        with autocast(args):
            logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum"))
        count += int((labels != IGNORE_INDEX).sum())
    return total / count


def peak_mb() -> float:
    """The peak memory of the process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def print_result(
    args: argparse.Namespace, clock: Clock, steps: int, slots: int, trained: list[Row], model: Any, held_out: list[Row]
) -> None:
    """Print the side's line of JSON. ``slots`` counts all tokens that the model read, padding included."""
    tokens, peak = sum(len(row["input_ids"]) for row in trained), peak_mb()  # of training, before the loss
    result = {
        "cpu_s": round(clock.cpu_s, 4),
        "wall_s": round(clock.wall_s, 4),
        "peak_rss_mb": round(peak),
        "above_start_mb": round(peak - args.start_mb),
        "steps": steps,
        "tokens": tokens,
        "with_loss": sum(label != IGNORE_INDEX for row in trained for label in row["labels"][1:]),
        "fill": round(tokens / slots, 3),
        "loss": round(loss(model, held_out, args), 4),
    }
    print(json.dumps(result))
