"""A bare torch loop over batches that are collated before the clock starts, grouped by length as ours are."""

import random

import torch
from task import LEARNING_RATE, MAX_GRAD_NORM, Clock, Row, arguments, loss, pairs, print_result, rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def collate(group: list[Row], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in group)
    attention_mask = lambda length: [1] * length + [0] * (width - length)  # noqa: E731
    return {
        "input_ids": torch.tensor([r["input_ids"] + [pad] * (width - len(r["input_ids"])) for r in group]),
        "attention_mask": torch.tensor([attention_mask(len(r["input_ids"])) for r in group]),
        "scores": torch.tensor([r["score"] for r in group]),
    }


def batches(train_rows: list[Row], size: int, pad: int, in_pairs: bool, seed: int) -> list[dict[str, torch.Tensor]]:
    """In pairs, the rejected rows follow the chosen ones."""
    units = [*pairs(train_rows)] if in_pairs else [(row,) for row in train_rows]
    units.sort(key=lambda unit: max(len(row["input_ids"]) for row in unit))
    groups = [units[i : i + size] for i in range(0, len(units), size)]
    random.Random(seed).shuffle(groups)
    return [collate([row for side in zip(*group, strict=True) for row in side], pad) for group in groups]


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, train_batches: list[dict], in_pairs: bool) -> None:
    model.train()
    for batch in train_batches:
        scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
        if in_pairs:
            chosen, rejected = scores.chunk(2)
            loss_value = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        else:
            loss_value = torch.nn.functional.mse_loss(scores, batch["scores"])
        loss_value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    args = arguments("A bare training loop.")
    warmup_rows, train_rows, held_out = rows(args)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32)
    pad = AutoTokenizer.from_pretrained(args.model).pad_token_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    train(model, optimizer, batches(warmup_rows, args.batch, pad, args.pairs, args.seed), args.pairs)
    train_batches = batches(train_rows, args.batch, pad, args.pairs, args.seed)
    clock = Clock()
    clock.start()
    train(model, optimizer, train_batches, args.pairs)
    clock.stop()
    slots = sum(batch["input_ids"].numel() for batch in train_batches)
    print_result(clock, args, slots, train_rows, loss(model, held_out, args.pairs))


if __name__ == "__main__":
    main()
