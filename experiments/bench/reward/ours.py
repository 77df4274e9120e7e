"""Our side: the package's own path, from token ids to a trained reward model.

Without MLflow, which has a line of its own, and without checkpoints, which no side writes.
"""

import contextlib
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from task import LEARNING_RATE, MAX_GRAD_NORM, Clock, Row, arguments, loss, pairs, print_result, rows
from transformers import AutoModelForSequenceClassification

from manners.data.batching import ResumableBatches
from manners.data.prompt_groups import PromptGroup, collate_groups
from manners.data.reward_examples import RewardExample
from manners.methods.callbacks import discard_checkpoints
from manners.methods.lightning import fit_with_lightning
from manners.methods.reward import RewardModule
from manners.models.tokenizer import load_tokenizer
from manners.runtime.device import Device
from manners.tracking.logger import NullLogger


class Timed(RewardModule):
    """Runs the clock from the first batch to the end of the last, before the validation that ends the run."""

    clock: Clock

    def on_train_start(self) -> None:
        super().on_train_start()
        self.clock.start()

    def on_train_batch_end(self, *_: object) -> None:
        if self.trainer.global_step == self.total_steps:
            self.clock.stop()


def examples(train_rows: list[Row], in_pairs: bool) -> list[RewardExample]:
    to_example = lambda row: RewardExample(row["input_ids"], [0] * len(row["input_ids"]), target=row["score"])  # noqa: E731
    if not in_pairs:
        return [to_example(row) for row in train_rows]
    return [
        RewardExample(a["input_ids"], [0] * len(a["input_ids"]), rejected=to_example(b)) for a, b in pairs(train_rows)
    ]


def train(network: Any, pad: int, train_rows: list[Row], args: Any, folder: Path) -> tuple[Clock, int]:
    """One epoch with the package's defaults, except for the settings that all sides share."""
    groups, slots = [PromptGroup([example], share_prompt=False) for example in examples(train_rows, args.pairs)], []
    collate_rows = partial(collate_groups, pad=pad, share_prompt=False)

    def collate_and_count(rows: list[PromptGroup]) -> dict:
        batch = collate_rows(rows)
        slots.append(batch["input_ids"].numel())
        return batch

    steps, rows_at_once = len(groups) // args.batch, args.batch // 2 if args.microbatches else args.batch
    batches = ResumableBatches(
        groups, args.batch, collate_and_count, steps, accumulate=1, seed=args.seed, group_by_length=True,
        microbatch_size=rows_at_once,
    )  # fmt: skip
    module = Timed(
        network,
        "pairwise" if args.pairs else "mse",
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
    fit_with_lightning(module, batches, [collate_rows(groups[:1])], folder, Device("cpu", "32"), 10**6, 10**6, 0)
    discard_checkpoints(folder)
    return module.clock, sum(slots)


def main() -> None:
    args = arguments("Our reward model.", "--microbatches --apart")
    warmup_rows, train_rows, held_out = rows(args)
    tokenizer = load_tokenizer(str(args.model), require_template=False)
    # Not load_reward_base, which would initialize a new head.
    network = AutoModelForSequenceClassification.from_pretrained(args.model)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        train(network, tokenizer.pad_token_id, warmup_rows, args, Path(folder))
        clock, slots = train(network, tokenizer.pad_token_id, train_rows, args, Path(folder))
    print_result(clock, args, slots, train_rows, loss(network, held_out, args.pairs))


if __name__ == "__main__":
    main()
