"""Our side: the package's own path, from token ids to trained weights.

Without MLflow, which has a line of its own, and without checkpoints, which no side writes.
"""

import argparse
import contextlib
import gc
import sys
import tempfile
from functools import partial
from pathlib import Path

from task import LEARNING_RATE, MAX_GRAD_NORM, Clock, Row, arguments, print_result, rows

from manners.data.batching import ResumableBatches, collate
from manners.data.tokenize import TokenizedExample
from manners.methods.callbacks import discard_checkpoints
from manners.methods.lightning import fit_with_lightning
from manners.methods.sft import SFTModule
from manners.models import loading, lora
from manners.models.compile import compiled_layers
from manners.models.tokenizer import load_tokenizer
from manners.runtime.device import Device
from manners.tracking.logger import NullLogger


class Timed(SFTModule):
    """Runs the clock from the first batch to the end of the last, before the validation that ends the run."""

    clock: Clock

    def on_train_start(self) -> None:
        super().on_train_start()
        self.clock.start()

    def on_train_batch_end(self, *_: object) -> None:
        if self.trainer.global_step == self.total_steps:
            self.clock.stop()


def train(
    args: argparse.Namespace, model: object, tokenizer: object, train_rows: list[Row], rows: int, folder: Path
) -> tuple:
    """One epoch with the package's defaults, except for the settings that all sides share."""
    examples = [TokenizedExample(row["input_ids"], row["labels"]) for row in train_rows]
    collate_rows = partial(collate, pad=tokenizer.pad_token_id)
    batch, device = args.batch, Device("cpu", "bf16" if args.bf16 else "32")
    steps = len(examples) // batch
    batches = ResumableBatches(
        examples, batch, collate_rows, steps, accumulate=1, seed=args.seed, group_by_length=True, microbatch_size=rows
    )
    module = Timed(
        model,
        log=NullLogger().log,
        total_steps=steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
        accumulate=batches.accumulate,
        logging_steps=5,
    )
    module.clock = Clock()
    fit_with_lightning(module, batches, [collate_rows(examples[:1])], folder, device, 10**6, 10**6, 0)
    microbatches = [indices[i : i + rows] for indices in batches.batches for i in range(0, batch, rows)]
    slots = sum(len(indices) * max(examples[i].length for i in indices) for indices in microbatches)
    return module.clock, steps, slots


def main() -> None:
    args = arguments("Our SFT.", "--microbatches --apart", "--compile")
    warmup_rows, train_rows, held_out = rows(args)
    warmup_rows = train_rows if args.compile else warmup_rows  # all shapes are compiled before the clock starts
    rows_at_once = args.batch // 4 if args.microbatches else args.batch
    model, tokenizer = loading.load_model(str(args.model)), load_tokenizer(str(args.model))
    model = lora.prepare_for_training(model, "lora" if args.lora else "none", 16, 32, 0.0, "all-linear")
    no_stdout, scratch = contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory()
    with no_stdout, scratch as folder, compiled_layers(model, args.compile):
        train(args, model, tokenizer, warmup_rows, rows_at_once, Path(folder))
        discard_checkpoints(Path(folder))
        gc.collect()  # Lightning's trainer and module reference each other, and keep the optimizer states alive
        clock, steps, slots = train(args, model, tokenizer, train_rows, rows_at_once, Path(folder))
    print_result(args, clock, steps, slots, train_rows, model, held_out)


if __name__ == "__main__":
    main()
