"""A bare loop in torch over batches that were made before the clock starts: what no trainer can be faster than.

The batches are as full as ours: ``--sorted`` makes them as the package does. Without it they are random.
"""

import random

import torch
from peft import get_peft_model
from task import CLIP, IGNORE, RATE, Clock, Row, arguments, load, lora, loss, rows, say


def batches(taken: list[Row], size: int, pad: int, by_length: bool, seed: int) -> list[dict[str, torch.Tensor]]:
    taken = sorted(taken, key=lambda row: len(row["input_ids"])) if by_length else taken
    groups = [taken[i : i + size] for i in range(0, len(taken), size)]
    random.Random(seed).shuffle(groups)
    return [padded(group, pad) for group in groups]


def padded(group: list[Row], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in group)
    fill = lambda name, value: torch.tensor([r[name] + [value] * (width - len(r[name])) for r in group])  # noqa: E731
    return {"input_ids": fill("input_ids", pad), "labels": fill("labels", IGNORE)}


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, made: list[dict[str, torch.Tensor]]) -> None:
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    for batch in made:
        # Right-padded and causal: no token sees the padding, so no mask is needed.
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    args = arguments("A bare loop.", "--sorted")
    warm, taken, held_out = rows(args)
    model, tokenizer = load(args)
    model = get_peft_model(model, lora()) if args.lora else model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    train(model, optimizer, [padded(warm, tokenizer.pad_token_id)])
    made = batches(taken, args.batch, tokenizer.pad_token_id, args.sorted, args.seed)
    clock = Clock()
    clock.start()
    train(model, optimizer, made)
    clock.stop()
    slots = sum(batch["input_ids"].numel() for batch in made)
    say(clock, len(made), slots, taken, loss(model, held_out))


if __name__ == "__main__":
    main()
