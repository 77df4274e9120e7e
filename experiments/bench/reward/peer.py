"""The peers: transformers' Trainer for scores, TRL 1.16's RewardTrainer for pairs, unchanged, on the shared rows.

32 bits and no gradient checkpointing, as on our side: TRL's defaults (bf16, checkpointing) only cost time on a CPU.
"""

import contextlib
import sys
import tempfile

import torch
from datasets import Dataset
from task import LEARNING_RATE, MAX_GRAD_NORM, Clock, Row, arguments, loss, pairs, print_result, rows
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import RewardConfig, RewardTrainer


class Timer(TrainerCallback):
    """Starts and stops the clock with training."""

    def __init__(self) -> None:
        self.clock = Clock()

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.clock.start()

    def on_train_end(self, *_: object, **__: object) -> None:
        self.clock.stop()


def to_dataset(train_rows: list[Row], in_pairs: bool) -> Dataset:
    if in_pairs:
        examples = [{"chosen_ids": a["input_ids"], "rejected_ids": b["input_ids"]} for a, b in pairs(train_rows)]
        return Dataset.from_list(examples)
    return Dataset.from_list([{"input_ids": row["input_ids"], "label": row["score"]} for row in train_rows])


def main() -> None:
    args = arguments("Trainer or RewardTrainer.", "--grouped", "--single")
    warmup_rows, train_rows, held_out = rows(args)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    slots = []

    def train(rows_given: list[Row], folder: str) -> Clock:
        settings = {
            "output_dir": folder,
            "per_device_train_batch_size": 1 if args.single else args.batch,
            "gradient_accumulation_steps": args.batch if args.single else 1,
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
            "bf16": False,
            "gradient_checkpointing": False,
        }
        timer, data = Timer(), to_dataset(rows_given, args.pairs)
        if args.pairs:
            config = RewardConfig(**settings, max_length=512)
            trainer = RewardTrainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[timer])
        else:
            collator = DataCollatorWithPadding(tokenizer)
            trainer = Trainer(model, TrainingArguments(**settings), collator, data, callbacks=[timer])
        data_collator = trainer.data_collator

        def collate_and_count(rows: list[dict]) -> dict:
            batch = data_collator(rows)
            slots.append(batch["input_ids"].numel())
            return batch

        trainer.data_collator = collate_and_count
        trainer.train()
        return timer.clock

    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        train(warmup_rows, folder)
        slots.clear()
        clock = train(train_rows, folder)
    print_result(clock, args, sum(slots), train_rows, loss(model, held_out, args.pairs))


if __name__ == "__main__":
    main()
