"""What both sides of the tracking line share: the module, its batch, and switching MLflow on and off.

MLflow is turned on and off every ``WINDOW`` steps of one training, so that both see the same machine. Metrics are
written once in a window. Its CPU seconds are all of the process, until what it wrote is in the store; its wall seconds
are those of the training, which does not wait for a thread that sends.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from manners.methods.lightning import MetricAccumulator
from manners.methods.sft import SFTModule
from manners.models import lora

TINY = Path(__file__).resolve().parents[3] / "src" / "manners" / "models" / "tiny"
WINDOW, ROWS, LENGTH = 5, 16, 32  # steps between written metrics, as in train.py; near the packaged corpus's batches


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--windows", type=int, default=12, help="of each kind; one before them warms up")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    return args


def steps(windows: int) -> int:
    return WINDOW * (2 * windows + 2)  # one that warms up, and one after the last, whose start ends the last


def batch(seed: int) -> dict[str, torch.Tensor]:
    """Token ids at random, all but the first carrying loss."""
    ids = torch.randint(2, 3072, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))
    trained = torch.tensor(ROWS * (LENGTH - 1))
    return {"input_ids": ids, "labels": ids, "tokens": torch.tensor(ids.numel()), "step_num_targets": trained}


class Turns(SFTModule):
    """The package's SFT of the tiny model by LoRA. ``turn(on)`` turns MLflow on or off, and waits for what it sends."""

    turn: Callable[[bool], None]

    def on_train_batch_start(self, _batch: dict, index: int) -> None:
        if index % WINDOW:
            return
        wall, window = time.perf_counter(), index // WINDOW
        self.turn(window % 2 == 1)
        cpu = time.process_time()
        if window > 1:
            spent = self.on if window % 2 == 0 else self.off
            spent.append((cpu - self.began[0], wall - self.began[1]))
        self.began = cpu, time.perf_counter()

    def metrics(self, window: MetricAccumulator, prefix: str) -> dict[str, float]:
        if prefix == "train":
            self.loss = window.loss
        return super().metrics(window, prefix)


def module(windows: int, seed: int, write: Callable[[dict[str, float], int], None]) -> Turns:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    torch.manual_seed(seed)  # the adapter begins at random
    model = lora.prepare_for_training(model, "lora", 16, 32, 0.0, "all-linear")
    made = Turns(
        model, write, steps(windows), 1e-3, "constant", 0, weight_decay=0.0, max_grad_norm=1.0, accumulate=1,
        logging_steps=WINDOW,
    )  # fmt: skip
    made.on, made.off = [], []
    return made


def say(made: Turns) -> None:
    """The side's line of JSON: seconds of all windows with MLflow, and of all without."""
    (cpu, wall), (off_cpu, off_wall) = (map(sum, zip(*spent, strict=True)) for spent in (made.on, made.off))
    found = {
        "cpu_s": round(cpu, 4),
        "wall_s": round(wall, 4),
        "off_cpu_s": round(off_cpu, 4),
        "off_wall_s": round(off_wall, 4),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "steps": WINDOW * len(made.on),
        "loss": round(made.loss, 4),
    }
    print(json.dumps(found))
