"""The peers: transformers' Trainer for scores, TRL 1.16's RewardTrainer for pairs, unchanged, on the shared rows.

32 bits and no gradient checkpointing, as on our side: TRL's own defaults (bf16, checkpointing) only cost time on a CPU.
"""

import contextlib
import sys
import tempfile

import torch
from datasets import Dataset
from task import CLIP, RATE, Clock, Row, arguments, loss, pairs, rows, say
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
    """The clock of the training."""

    def __init__(self) -> None:
        self.clock = Clock()

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.clock.start()

    def on_train_end(self, *_: object, **__: object) -> None:
        self.clock.stop()


def data_of(taken: list[Row], in_pairs: bool) -> Dataset:
    if in_pairs:
        both = [{"chosen_ids": a["input_ids"], "rejected_ids": b["input_ids"]} for a, b in pairs(taken)]
        return Dataset.from_list(both)
    return Dataset.from_list([{"input_ids": row["input_ids"], "label": row["score"]} for row in taken])


def main() -> None:
    args = arguments("Trainer or RewardTrainer.", "--grouped", "--single")
    warm, taken, held_out = rows(args)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    slots = []

    def train(given: list[Row], folder: str) -> Clock:
        settings = {
            "output_dir": folder,
            "per_device_train_batch_size": 1 if args.single else args.batch,
            "gradient_accumulation_steps": args.batch if args.single else 1,
            "num_train_epochs": 1,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "max_grad_norm": CLIP,
            "train_sampling_strategy": "group_by_length" if args.grouped else "random",
            "logging_steps": 5,
            "seed": args.seed,
            "use_cpu": True,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "gradient_checkpointing": False,
        }
        timer, data = Timer(), data_of(given, args.pairs)
        if args.pairs:
            config = RewardConfig(**settings, max_length=512)
            trainer = RewardTrainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[timer])
        else:
            together = DataCollatorWithPadding(tokenizer)
            trainer = Trainer(model, TrainingArguments(**settings), together, data, callbacks=[timer])
        inner = trainer.data_collator

        def counted(found: list[dict]) -> dict:
            batch = inner(found)
            slots.append(batch["input_ids"].numel())
            return batch

        trainer.data_collator = counted
        trainer.train()
        return timer.clock

    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        train(warm, folder)
        slots.clear()
        clock = train(taken, folder)
    say(clock, args, sum(slots), taken, loss(model, held_out, args.pairs))


if __name__ == "__main__":
    main()
