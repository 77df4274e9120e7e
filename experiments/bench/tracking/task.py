"""What both sides of the tracking benchmark share: the module, its batch, and windows with and without MLflow.

MLflow is switched on and off every ``WINDOW`` steps of one training, so that both are measured on the same machine at
the same time. Metrics are logged once per window. CPU seconds are those of the process until the logged metrics are in
the store; wall seconds are those of the training, which does not wait for a thread that sends.
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
    return WINDOW * (2 * windows + 2)  # one to warm up, and one whose start ends the last


def batch(seed: int) -> dict[str, torch.Tensor]:
    """Random token ids; all but the first carry loss."""
    ids = torch.randint(2, 3072, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))
    num_targets = torch.tensor(ROWS * (LENGTH - 1))
    return {"input_ids": ids, "labels": ids, "tokens": torch.tensor(ids.numel()), "step_num_targets": num_targets}


class AlternatingTracking(SFTModule):
    """SFT of the tiny model with LoRA. ``switch_tracking(on)`` waits until what was logged is in the store."""

    switch_tracking: Callable[[bool], None]

    def on_train_batch_start(self, _batch: dict, index: int) -> None:
        if index % WINDOW:
            return
        wall, window = time.perf_counter(), index // WINDOW
        self.switch_tracking(window % 2 == 1)
        cpu = time.process_time()
        if window > 1:
            times = self.with_mlflow if window % 2 == 0 else self.without_mlflow
            times.append((cpu - self.started[0], wall - self.started[1]))
        self.started = cpu, time.perf_counter()

    def metrics(self, window: MetricAccumulator, prefix: str) -> dict[str, float]:
        if prefix == "train":
            self.loss = window.loss
        return super().metrics(window, prefix)


def make_module(windows: int, seed: int, log: Callable[[dict[str, float], int], None]) -> AlternatingTracking:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    torch.manual_seed(seed)  # of the adapter
    model = lora.prepare_for_training(model, "lora", 16, 32, 0.0, "all-linear")
    sft_module = AlternatingTracking(
        model, log, steps(windows), 1e-3, "constant", 0, weight_decay=0.0, max_grad_norm=1.0, accumulate=1,
        logging_steps=WINDOW,
    )  # fmt: skip
    sft_module.with_mlflow, sft_module.without_mlflow = [], []
    return sft_module


def print_result(sft_module: AlternatingTracking) -> None:
    """Print the line of JSON: seconds of all windows with MLflow, and of all without."""
    (cpu, wall), (off_cpu, off_wall) = (
        map(sum, zip(*times, strict=True)) for times in (sft_module.with_mlflow, sft_module.without_mlflow)
    )
    record = {
        "cpu_s": round(cpu, 4),
        "wall_s": round(wall, 4),
        "off_cpu_s": round(off_cpu, 4),
        "off_wall_s": round(off_wall, 4),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "steps": WINDOW * len(sft_module.with_mlflow),
        "loss": round(sft_module.loss, 4),
    }
    print(json.dumps(record))
