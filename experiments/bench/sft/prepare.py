"""Write the rows of the SFT line (token ids with labels), of SmolLM2 too, and an eight-layer model with random weights.

Run it with the project's Python. The rows are loaded and tokenized by the package, so that every side trains on the
same tokens and only assistant turns carry loss.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from omegaconf import OmegaConf
from transformers import Qwen2Config, Qwen2ForCausalLM

from manners.config.schema import DatasetConfig
from manners.data.loading import load_splits
from manners.data.tokenize import UNLIMITED, tokenize
from manners.data.types import Conversation
from manners.models.tokenizer import load_tokenizer

MAX_LENGTH = 512  # the context of the tiny model; SmolLM2's rows are cut there too
SMOLLM = Path("outputs/bench/smollm2-135m")  # see ../smollm.py


def exchanges(chats: list[Conversation]) -> list[Conversation]:
    """Each question with each of its answers, once, at any depth of a tree."""
    unique = {}
    for chat in chats:
        for question, answer in zip(chat.messages, chat.messages[1:], strict=False):
            if answer["role"] == "assistant":
                unique[question["content"], answer["content"]] = Conversation([question, answer], chat.source)
    return list(unique.values())


def write_rows(file: Path, rows: list[Conversation], model: str) -> None:
    """JSON Lines of ``input_ids`` and ``labels``, in an order that depends on the name of the file alone."""
    examples = tokenize(rows, load_tokenizer(model), "assistant", MAX_LENGTH)
    random.Random(file.stem).shuffle(examples)
    lines = [json.dumps({"input_ids": e.input_ids, "labels": e.labels}) + "\n" for e in examples]
    file.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the rows and the model of the SFT line.")
    parser.add_argument("trees", help="OpenAssistant's trees, JSON Lines")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer("tiny")
    settings = DatasetConfig(path=args.trees, format="oasst", validation_share=0.0, test_share=0.0)
    chats = load_splits(OmegaConf.structured(settings)).train
    # Only conversations that fill the context are kept, so that all have the same length.
    full_length = [
        chat for chat in chats if tokenize([chat], tokenizer, "assistant", UNLIMITED)[0].length >= MAX_LENGTH
    ]
    write_rows(args.out / "exchanges.jsonl", exchanges(chats), "tiny")
    write_rows(args.out / "conversations.jsonl", full_length, "tiny")
    if SMOLLM.exists():
        write_rows(args.out / "exchanges-135m.jsonl", exchanges(chats), str(SMOLLM))
    model_dir = args.out / "eight"
    if not model_dir.exists():
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        Qwen2ForCausalLM(config).save_pretrained(model_dir)
        tokenizer.save_pretrained(model_dir)


if __name__ == "__main__":
    main()
