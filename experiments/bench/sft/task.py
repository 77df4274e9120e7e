"""What the sides of the SFT line share: options, rows, the model, the clock, and the loss that they are compared by.

Nothing here is the package's, so that the peers owe it nothing.
"""

import argparse
import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

RATE, CLIP = 5e-4, 1.0  # learning rate (constant) and the norm that gradients are clipped to; Adam as in torch
HELD_OUT = 12  # rows at the end of the file, which nobody trains on
IGNORE = -100

Row = dict[str, list[int]]  # input_ids and labels (T,): not shifted, IGNORE where there is no loss


def arguments(description: str, *more: str) -> argparse.Namespace:
    """The options of every side; ``more`` are switches of one."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--rows", type=Path, required=True, help="JSON Lines of input_ids and labels")
    parser.add_argument("--lora", action="store_true", help="LoRA of rank 16 on all linear layers, else all weights")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps that are measured")
    parser.add_argument("--batch", type=int, default=8, help="rows in an optimizer step")
    parser.add_argument("--seed", type=int, default=0, help="which rows are taken, and their order")
    for switch in more:
        parser.add_argument(switch, action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)  # an adapter begins at random
    return args


def rows(args: argparse.Namespace) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows for one step of warm-up, those that are measured, and held-out ones: the same on all sides."""
    lines = args.rows.read_text(encoding="utf-8").splitlines()
    everything = [json.loads(line) for line in lines]
    taken = random.Random(args.seed).sample(everything[:-HELD_OUT], args.batch * (args.steps + 1))
    return taken[: args.batch], taken[args.batch :], everything[-HELD_OUT:]


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model in 32 bits, without an adapter, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(args.model)


def lora() -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")


class Clock:
    """CPU and wall seconds between ``start`` and ``stop``."""

    def start(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self.cpu_s, self.wall_s = time.process_time() - self.cpu, time.perf_counter() - self.wall


@torch.no_grad()
def loss(model: Any, held_out: list[Row]) -> float:
    """Nats a token that carries loss, over rows that nobody trained on; each row by itself."""
    model.eval()
    total, count = 0.0, 0
    for row in held_out:
        labels = torch.tensor(row["labels"][1:])
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum"))
        count += int((labels != IGNORE).sum())
    return total / count


def say(clock: Clock, steps: int, slots: int, trained: list[Row], after: float) -> None:
    """The side's line of JSON. ``slots`` are all tokens that the model read, padding too."""
    read = sum(len(row["input_ids"]) for row in trained)
    found = {
        "cpu_s": round(clock.cpu_s, 4),
        "wall_s": round(clock.wall_s, 4),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "steps": steps,
        "tokens": read,
        "with_loss": sum(label != IGNORE for row in trained for label in row["labels"][1:]),
        "fill": round(read / slots, 3),
        "loss": round(after, 4),
    }
    print(json.dumps(found))
