"""What the sides of the reward line share: options, rows, pairs, clock and held-out loss.

This module does not import the package, so that the peers are independent of it.
"""

import argparse
import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import torch

LEARNING_RATE, MAX_GRAD_NORM = 1e-4, 1.0  # constant learning rate; Adam with torch's defaults
HELD_OUT = 128  # rows at the end of the file that no side trains on

Row = dict[str, Any]  # input_ids (T,) and the standardized score


def arguments(description: str, *switches: str) -> argparse.Namespace:
    """The options of every side; ``switches`` are flags of one side (with their aliases, after a space)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of a sequence classification model with one label"
    )
    parser.add_argument("--rows", type=Path, required=True, help="JSON Lines of input_ids and score")
    parser.add_argument("--pairs", action="store_true", help="Bradley-Terry loss on pairs of rows, instead of MSE")
    parser.add_argument("--steps", type=int, default=16, help="measured optimizer steps")
    parser.add_argument("--batch", type=int, default=16, help="rows, or pairs, per optimizer step")
    parser.add_argument("--seed", type=int, default=0, help="selects the rows and their order")
    for switch in switches:
        parser.add_argument(*switch.split(), action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    return args


def rows(args: argparse.Namespace) -> tuple[list[Row], list[Row], list[Row]]:
    """Warm-up rows for one step, measured rows and held-out rows: the same on all sides."""
    all_rows = [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines()]
    batch = args.batch * (2 if args.pairs else 1)
    sample = random.Random(args.seed).sample(all_rows[:-HELD_OUT], batch * (args.steps + 1))
    return sample[:batch], sample[batch:], all_rows[-HELD_OUT:]


def pairs(train_rows: list[Row]) -> list[tuple[Row, Row]]:
    """Consecutive rows as (politer, other)."""
    neighbors = zip(train_rows[::2], train_rows[1::2], strict=True)
    return [(a, b) if a["score"] >= b["score"] else (b, a) for a, b in neighbors]


class Clock:
    """CPU and wall seconds between ``start`` and ``stop``."""

    def start(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self.cpu_s, self.wall_s = time.process_time() - self.cpu, time.perf_counter() - self.wall


@torch.no_grad()
def loss(model: Any, held_out: list[Row], in_pairs: bool) -> float:
    """Mean loss over the held-out rows: squared error, or −log σ of the pairs' score differences."""
    model.eval()
    scores = torch.cat([model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in held_out])
    if not in_pairs:
        return float((scores - torch.tensor([row["score"] for row in held_out])).square().mean())
    sign = torch.tensor(
        [1.0 if a["score"] >= b["score"] else -1.0 for a, b in zip(held_out[::2], held_out[1::2], strict=True)]
    )
    return float(-torch.nn.functional.logsigmoid(sign * (scores[::2] - scores[1::2])).mean())


def print_result(
    clock: Clock, args: argparse.Namespace, slots: int, train_rows: list[Row], held_out_loss: float
) -> None:
    """Print the side's line of JSON. ``slots`` counts all tokens that the model read, padding included."""
    tokens = sum(len(row["input_ids"]) for row in train_rows)
    result = {
        "cpu_s": round(clock.cpu_s, 4),
        "wall_s": round(clock.wall_s, 4),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "steps": args.steps,
        "examples": len(train_rows),
        "tokens": tokens,
        "fill": round(tokens / slots, 3),
        "loss": round(held_out_loss, 4),
    }
    print(json.dumps(result))
