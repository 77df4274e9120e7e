"""Write three sizes of models with random weights, and rows of three lengths: random token ids that all carry loss."""

import json
import random
from pathlib import Path

import torch
from points import BATCHES, FOLDER, LENGTHS, WIDTHS
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 3072  # of the tiny model, whose tokenizer is used
ROWS = 4 * max(BATCHES) + 16  # three steps, one warm-up step, and held-out rows for the loss


def main() -> None:
    folder = Path(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained("src/manners/models/tiny")
    rng = random.Random(0)
    for length in LENGTHS:
        rows = [[rng.randrange(2, VOCABULARY) for _ in range(length)] for _ in range(ROWS)]
        lines = [json.dumps({"input_ids": row, "labels": row}) + "\n" for row in rows]
        (folder / f"{length}.jsonl").write_text("".join(lines), encoding="utf-8")
    for width, layers in WIDTHS.items():
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=2,
            max_position_embeddings=max(LENGTHS),
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        Qwen2ForCausalLM(config).save_pretrained(folder / str(width))
        tokenizer.save_pretrained(folder / str(width))


if __name__ == "__main__":
    main()
