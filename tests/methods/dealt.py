"""Runs of ``fit`` by as many processes as torchrun starts; the first keeps the weights and metrics that they end with.

``python -m torch.distributed.run --nproc-per-node 2 -m tests.methods.dealt MODEL OUT``
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
from manners.methods.distributed import SINGLE_PROCESS, ProcessGroup, init_distributed
from manners.methods.lightning_fit import BEST, ProgressBar, fit_with_lightning
from manners.models.lora import prepare_for_training
from manners.runtime.device import Device
from tests.methods.test_sft import examples, module

STEPS, SIZE = 5, 4  # rows at once, over all processes
ROWS = {"train": 13, "validation": 5}  # so that the last batch has one row, and leaves one of two processes idle
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lora-ddp": ("lora", "ddp", {"accumulate": 2}),
    "lora-fsdp": ("lora", "fsdp", {}),
    "whole-fsdp": ("none", "fsdp", {"weight_decay": 0.1}),  # by recomputed activations
}


class Cut(Exception):
    """Stands for a kill of all processes at once."""


def play(
    folder: Path, out: Path, name: str, process_group: ProcessGroup = SINGLE_PROCESS, dropout: float = 0.0, cut_after: int = 0
) -> None:
    """The steps of a case by all processes together; those after ``cut_after`` by a second start."""
    kind, sharing, changes = CASES[name]
    logged: list[Any] = []

    def start() -> None:
        torch.manual_seed(0)
        model = Qwen2ForCausalLM.from_pretrained(folder)
        model = prepare_for_training(model, kind, 4, 8, dropout, "all-linear", gradient_checkpointing=kind == "none")
        settings = {"accumulate": 1, "max_grad_norm": 0.5, "logging_steps": 2} | changes
        log = lambda metrics, step: logged.append([step, metrics])  # noqa: E731
        learner = module(model, total=STEPS, log=log, process_group=process_group, **settings)
        among, together = (process_group.rank, process_group.size), partial(collate, pad=0)
        size, rows = SIZE // process_group.size, examples(sum(ROWS.values()))
        train, held_out = rows[: ROWS["train"]], rows[ROWS["train"] :]
        batches = ResumableBatches(train, size, together, STEPS, settings["accumulate"], 3, True, *among)
        validation = validation_batches(held_out, size, together, *among)
        fit_with_lightning(learner, batches, validation, out, Device("cpu", "32"), 2, 3, 0, process_group, sharing)
        if process_group.size > 1 and sharing == "fsdp":  # each has its half, and not the whole
            weights: list[Any] = list(learner.parameters())
            assert sum(p.to_local().numel() for p in weights) < 0.6 * sum(p.numel() for p in weights)

    out.mkdir(parents=True, exist_ok=True)
    if cut_after:
        whole = ProgressBar.on_train_batch_end
        ProgressBar.on_train_batch_end = cutting(cut_after)  # type: ignore[method-assign]
        try:
            start()
        except Cut:
            pass
        finally:
            ProgressBar.on_train_batch_end = whole  # type: ignore[method-assign]
    start()
    if process_group.rank == 0:
        save_file(load_file(out / BEST), f"{out}.safetensors")
        Path(f"{out}.json").write_text(json.dumps(logged))


def cutting(step: int) -> Any:
    def die(_self: Any, trainer: Any, *_: Any) -> None:
        if trainer.global_step == step:
            raise Cut

    return die


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    process_group = init_distributed("cpu", "sft", 2)
    for name in CASES:
        play(model, out / name, name, process_group, cut_after=4 if name == "whole-fsdp" else 0)
    for name, cut_after in (("dropout", 0), ("dropout-cut", 4)):
        play(model, out / name, "lora-ddp", process_group, dropout=0.3, cut_after=cut_after)
