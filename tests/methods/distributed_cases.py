"""Runs of ``fit_with_lightning`` in several processes; the first one keeps their final weights and metrics.

``python -m torch.distributed.run --nproc-per-node 2 -m tests.methods.distributed_cases MODEL OUT``
"""

import json
import logging
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM

from manners.data.batching import ResumableBatches, collate, validation_batches
from manners.methods.callbacks import BEST, ProgressBar
from manners.methods.distributed import SINGLE_PROCESS, ProcessGroup, init_distributed
from manners.methods.lightning import fit_with_lightning
from manners.models.lora import prepare_for_training
from manners.runtime.device import Device
from tests.methods.test_sft import examples, module

STEPS, BATCH_SIZE = 5, 4  # rows in a batch, over all processes
ROWS = {"train": 13, "validation": 5}  # the last batch has one row, so that one of two processes gets a filler
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lora-ddp": ("lora", "ddp", {"accumulate": 2}),
    "lora-fsdp": ("lora", "fsdp", {}),
    "full-fsdp": ("none", "fsdp", {"weight_decay": 0.1}),  # with gradient checkpointing
}


class Killed(Exception):
    """Stands for a kill of all processes at once."""


def train_case(
    folder: Path,
    out: Path,
    name: str,
    process_group: ProcessGroup = SINGLE_PROCESS,
    dropout: float = 0.0,
    killed_at: int = 0,
) -> None:
    """Train a case in all processes; with ``killed_at`` the steps after it in a second start."""
    kind, strategy, changes = CASES[name]
    logged: list[Any] = []

    def start() -> None:
        torch.manual_seed(0)
        model = Qwen2ForCausalLM.from_pretrained(folder)
        model = prepare_for_training(model, kind, 4, 8, dropout, "all-linear", gradient_checkpointing=kind == "none")
        settings = {"accumulate": 1, "max_grad_norm": 0.5, "logging_steps": 2} | changes
        log = lambda metrics, step: logged.append([step, metrics])  # noqa: E731
        trained = module(model, total=STEPS, log=log, process_group=process_group, **settings)
        processes, collate_rows = (process_group.rank, process_group.size), partial(collate, pad=0)
        batch_size, rows = BATCH_SIZE // process_group.size, examples(sum(ROWS.values()))
        train_rows, eval_rows = rows[: ROWS["train"]], rows[ROWS["train"] :]
        batches = ResumableBatches(
            train_rows, batch_size, collate_rows, STEPS, settings["accumulate"], 3, True, *processes
        )
        validation = validation_batches(eval_rows, batch_size, collate_rows, *processes)
        fit_with_lightning(trained, batches, validation, out, Device("cpu", "32"), 2, 3, 0, process_group, strategy)
        if process_group.size > 1 and strategy == "fsdp":  # each process holds its half only
            weights: list[Any] = list(trained.parameters())
            assert sum(p.to_local().numel() for p in weights) < 0.6 * sum(p.numel() for p in weights)

    out.mkdir(parents=True, exist_ok=True)
    if killed_at:
        original = ProgressBar.on_train_batch_end
        ProgressBar.on_train_batch_end = kill_at(killed_at)  # type: ignore[method-assign]
        try:
            start()
        except Killed:
            pass
        finally:
            ProgressBar.on_train_batch_end = original  # type: ignore[method-assign]
    start()
    if process_group.rank == 0:
        save_file(load_file(out / BEST), f"{out}.safetensors")
        Path(f"{out}.json").write_text(json.dumps(logged))


def kill_at(step: int) -> Any:
    def kill(_self: Any, trainer: Any, *_: Any) -> None:
        if trainer.global_step == step:
            raise Killed

    return kill


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    process_group = init_distributed("cpu", "sft", 2)
    for name in CASES:
        train_case(model, out / name, name, process_group, killed_at=4 if name == "full-fsdp" else 0)
    for name, killed_at in (("dropout", 0), ("dropout-killed", 4)):
        train_case(model, out / name, "lora-ddp", process_group, dropout=0.3, killed_at=killed_at)
