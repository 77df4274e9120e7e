"""What the sides of the reward line share: options, rows, pairs, the clock, and the error that they are compared by.

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

RATE, CLIP = 1e-4, 1.0  # learning rate (constant) and the norm that gradients are clipped to; Adam as in torch
HELD_OUT = 128  # rows at the end of the file, which nobody trains on

Row = dict[str, Any]  # input_ids (T,) and the standardised score


def arguments(description: str, *more: str) -> argparse.Namespace:
    """The options of every side; ``more`` are switches of one."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model with one label")
    parser.add_argument("--rows", type=Path, required=True, help="JSON Lines of input_ids and score")
    parser.add_argument("--pairs", action="store_true", help="Bradley-Terry on pairs of the rows, else squared error")
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps that are measured")
    parser.add_argument("--batch", type=int, default=16, help="rows, or pairs, in an optimizer step")
    parser.add_argument("--seed", type=int, default=0, help="which rows are taken, and their order")
    for switch in more:
        parser.add_argument(switch, action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    return args


def rows(args: argparse.Namespace) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows for one step of warm-up, those that are measured, and held-out ones: the same on all sides."""
    everything = [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines()]
    batch = args.batch * (2 if args.pairs else 1)
    taken = random.Random(args.seed).sample(everything[:-HELD_OUT], batch * (args.steps + 1))
    return taken[:batch], taken[batch:], everything[-HELD_OUT:]


def pairs(taken: list[Row]) -> list[tuple[Row, Row]]:
    """Neighbours as (the politer, the other)."""
    both = zip(taken[::2], taken[1::2], strict=True)
    return [(a, b) if a["score"] >= b["score"] else (b, a) for a, b in both]


class Clock:
    """CPU and wall seconds between ``start`` and ``stop``."""

    def start(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self.cpu_s, self.wall_s = time.process_time() - self.cpu, time.perf_counter() - self.wall


@torch.no_grad()
def loss(model: Any, held_out: list[Row], in_pairs: bool) -> float:
    """The mean loss over rows that nobody trained on: squared error, or −log σ of the pairs' differences."""
    model.eval()
    scores = torch.cat([model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in held_out])
    if not in_pairs:
        return float((scores - torch.tensor([row["score"] for row in held_out])).square().mean())
    better = torch.tensor(
        [1.0 if a["score"] >= b["score"] else -1.0 for a, b in zip(held_out[::2], held_out[1::2], strict=True)]
    )
    return float(-torch.nn.functional.logsigmoid(better * (scores[::2] - scores[1::2])).mean())


def say(clock: Clock, args: argparse.Namespace, slots: int, taken: list[Row], after: float) -> None:
    """The side's line of JSON. ``slots`` are all tokens that the model read, padding too."""
    read = sum(len(row["input_ids"]) for row in taken)
    found = {
        "cpu_s": round(clock.cpu_s, 4),
        "wall_s": round(clock.wall_s, 4),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "steps": args.steps,
        "examples": len(taken),
        "tokens": read,
        "fill": round(read / slots, 3),
        "loss": round(after, 4),
    }
    print(json.dumps(found))
