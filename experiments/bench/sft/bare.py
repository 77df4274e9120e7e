"""A bare torch loop over batches that are collated before the clock starts: a bound for every trainer.

``--sorted`` groups rows by length as the package does; without it the batches are random.
"""

import argparse
import random

import torch
from peft import get_peft_model
from task import (
    IGNORE_INDEX,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    Clock,
    Row,
    arguments,
    autocast,
    load,
    lora,
    print_result,
    rows,
)


def batches(
    train_rows: list[Row], size: int, pad: int, group_by_length: bool, seed: int
) -> list[dict[str, torch.Tensor]]:
    train_rows = sorted(train_rows, key=lambda row: len(row["input_ids"])) if group_by_length else train_rows
    groups = [train_rows[i : i + size] for i in range(0, len(train_rows), size)]
    random.Random(seed).shuffle(groups)
    return [collate(group, pad) for group in groups]


def collate(group: list[Row], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in group)
    pad_to_width = lambda name, value: torch.tensor([r[name] + [value] * (width - len(r[name])) for r in group])  # noqa: E731
    return {"input_ids": pad_to_width("input_ids", pad), "labels": pad_to_width("labels", IGNORE_INDEX)}


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    train_batches: list[dict[str, torch.Tensor]],
    args: argparse.Namespace,
) -> None:
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    for batch in train_batches:
        # Right padding and causal attention: no token attends to padding, so no mask is needed.
        with autocast(args):
            logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    args = arguments("A bare training loop.", "--sorted")
    warmup_rows, train_rows, held_out = rows(args)
    model, tokenizer = load(args)
    model = get_peft_model(model, lora()) if args.lora else model
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0.0
    )
    train(model, optimizer, [collate(warmup_rows, tokenizer.pad_token_id)], args)
    train_batches = batches(train_rows, args.batch, tokenizer.pad_token_id, args.sorted, args.seed)
    clock = Clock()
    clock.start()
    train(model, optimizer, train_batches, args)
    clock.stop()
    slots = sum(batch["input_ids"].numel() for batch in train_batches)
    print_result(args, clock, len(train_batches), slots, train_rows, model, held_out)


if __name__ == "__main__":
    main()
