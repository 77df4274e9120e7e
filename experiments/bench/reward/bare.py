"""A bare loop in torch over batches that were made before the clock starts, sorted by length as ours are."""

import random

import torch
from task import CLIP, RATE, Clock, Row, arguments, loss, pairs, rows, say
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def padded(group: list[Row], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in group)
    fill = lambda length: [1] * length + [0] * (width - length)  # noqa: E731
    return {
        "input_ids": torch.tensor([r["input_ids"] + [pad] * (width - len(r["input_ids"])) for r in group]),
        "attention_mask": torch.tensor([fill(len(r["input_ids"])) for r in group]),
        "scores": torch.tensor([r["score"] for r in group]),
    }


def batches(taken: list[Row], size: int, pad: int, in_pairs: bool, seed: int) -> list[dict[str, torch.Tensor]]:
    """Of pairs, the rejected follow the chosen."""
    units = [*pairs(taken)] if in_pairs else [(row,) for row in taken]
    units.sort(key=lambda unit: max(len(row["input_ids"]) for row in unit))
    groups = [units[i : i + size] for i in range(0, len(units), size)]
    random.Random(seed).shuffle(groups)
    return [padded([row for side in zip(*group, strict=True) for row in side], pad) for group in groups]


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, made: list[dict], in_pairs: bool) -> None:
    model.train()
    for batch in made:
        scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
        if in_pairs:
            chosen, rejected = scores.chunk(2)
            found = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        else:
            found = torch.nn.functional.mse_loss(scores, batch["scores"])
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    args = arguments("A bare loop.")
    warm, taken, held_out = rows(args)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32)
    pad = AutoTokenizer.from_pretrained(args.model).pad_token_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    train(model, optimizer, batches(warm, args.batch, pad, args.pairs, args.seed), args.pairs)
    made = batches(taken, args.batch, pad, args.pairs, args.seed)
    clock = Clock()
    clock.start()
    train(model, optimizer, made, args.pairs)
    clock.stop()
    slots = sum(batch["input_ids"].numel() for batch in made)
    say(clock, args, slots, taken, loss(model, held_out, args.pairs))


if __name__ == "__main__":
    main()
