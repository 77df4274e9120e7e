"""The peers: TRL 1.16's SFTTrainer and transformers' Trainer, unchanged, on the rows that all sides share.

They get token ids and labels, which SFTTrainer takes as they are; so the same tokens carry loss. 32 bits and no
gradient checkpointing, as on our side: SFTTrainer's own defaults (bf16, checkpointing) only cost time on a CPU.
"""

import contextlib
import gc
import os
import sys
import tempfile

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # before the libraries read them

from datasets import Dataset
from peft import get_peft_model
from task import CLIP, RATE, Clock, Row, arguments, load, lora, loss, rows, say
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

LENGTH = 512


class Timer(TrainerCallback):
    """The clock of the training, and the size of what the model read."""

    def __init__(self) -> None:
        self.clock = Clock()

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.clock.start()

    def on_train_end(self, *_: object, **__: object) -> None:
        self.clock.stop()


def main() -> None:
    args = arguments("SFTTrainer or Trainer.", "--trainer", "--packed", "--grouped", "--single", "--compile")
    warm, taken, held_out = rows(args)
    warm = taken if args.compile else warm  # all shapes are met, and compiled for, before the clock starts
    model, tokenizer = load(args)
    model = get_peft_model(model, lora()) if args.lora else model
    slots = []

    def train(given: list[Row], folder: str) -> tuple[Clock, int]:
        # Packed rows are joined into one, and attention to all of it takes the square of its length: so one row at a
        # time, and as many in a step as hold the tokens of `batch` rows.
        mean = sum(len(row["input_ids"]) for row in given) / len(given)
        accumulate = max(1, round(args.batch * mean / LENGTH)) if args.packed else args.batch if args.single else 1
        settings = {
            "output_dir": folder,
            "per_device_train_batch_size": 1 if args.packed or args.single else args.batch,
            "gradient_accumulation_steps": accumulate,
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
            "torch_compile": args.compile,
        }
        timer, data = Timer(), Dataset.from_list(given)
        if args.trainer:
            together = DataCollatorForSeq2Seq(tokenizer, model=None)  # pads labels too
            trainer = Trainer(model, TrainingArguments(**settings), together, data, callbacks=[timer])
        else:
            config = SFTConfig(**settings, max_length=LENGTH, packing=args.packed)
            trainer = SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[timer])
        inner = trainer.data_collator

        def counted(found: list[dict]) -> dict:
            batch = inner(found)
            slots.append(batch["input_ids"].numel())
            return batch

        trainer.data_collator = counted
        trainer.train()
        return timer.clock, trainer.state.global_step

    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        train(warm, folder)
        slots.clear()
        gc.collect()  # as on our side
        clock, steps = train(taken, folder)
    say(clock, steps, sum(slots), taken, loss(model, held_out))


if __name__ == "__main__":
    main()
