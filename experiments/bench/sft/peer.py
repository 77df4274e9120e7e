"""The peers: TRL 1.16's SFTTrainer and transformers' Trainer, unchanged, on the rows that all sides share.

They get token ids and labels, which SFTTrainer takes as they are, so that the same tokens carry loss. No gradient
checkpointing, as on our side, and 32 bits unless ``--bf16``.
"""

import contextlib
import gc
import os
import sys
import tempfile

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # before the libraries read them

from datasets import Dataset
from peft import get_peft_model
from task import LEARNING_RATE, MAX_GRAD_NORM, Clock, Row, arguments, load, lora, print_result, rows
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

MAX_LENGTH = 512


class Timer(TrainerCallback):
    """Starts and stops the clock with training."""

    def __init__(self) -> None:
        self.clock = Clock()

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.clock.start()

    def on_train_end(self, *_: object, **__: object) -> None:
        self.clock.stop()


def main() -> None:
    args = arguments("SFTTrainer or Trainer.", "--trainer", "--packed", "--grouped", "--single", "--compile")
    warmup_rows, train_rows, held_out = rows(args)
    warmup_rows = train_rows if args.compile else warmup_rows  # all shapes are compiled before the clock starts
    model, tokenizer = load(args)
    model = get_peft_model(model, lora()) if args.lora else model
    slots = []

    def train(rows_given: list[Row], folder: str) -> tuple[Clock, int]:
        # On a CPU, attention to a packed batch takes the square of its length: so one packed row at a time, and as many
        # per step as hold the tokens of `batch` rows.
        mean_length = sum(len(row["input_ids"]) for row in rows_given) / len(rows_given)
        accumulate = (
            max(1, round(args.batch * mean_length / MAX_LENGTH)) if args.packed else args.batch if args.single else 1
        )
        settings = {
            "output_dir": folder,
            "per_device_train_batch_size": 1 if args.packed or args.single else args.batch,
            "gradient_accumulation_steps": accumulate,
            "num_train_epochs": 1,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "max_grad_norm": MAX_GRAD_NORM,
            "train_sampling_strategy": "group_by_length" if args.grouped else "random",
            "logging_steps": 5,
            "seed": args.seed,
            "use_cpu": True,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": args.bf16,
            "gradient_checkpointing": False,
            "torch_compile": args.compile,
        }
        timer, data = Timer(), Dataset.from_list(rows_given)
        if args.trainer:
            collator = DataCollatorForSeq2Seq(tokenizer, model=None)  # pads labels too
            trainer = Trainer(model, TrainingArguments(**settings), collator, data, callbacks=[timer])
        else:
            config = SFTConfig(**settings, max_length=MAX_LENGTH, packing=args.packed)
            trainer = SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[timer])
        data_collator = trainer.data_collator

        def collate_and_count(rows: list[dict]) -> dict:
            batch = data_collator(rows)
            slots.append(batch["input_ids"].numel())
            return batch

        trainer.data_collator = collate_and_count
        trainer.train()
        return timer.clock, trainer.state.global_step

    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        train(warmup_rows, folder)
        slots.clear()
        gc.collect()  # as on our side
        clock, steps = train(train_rows, folder)
    print_result(args, clock, steps, sum(slots), train_rows, model, held_out)


if __name__ == "__main__":
    main()
