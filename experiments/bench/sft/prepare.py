"""Write what all sides of the SFT line train on: token ids with labels, and a model of eight layers at random.

Run it with the project's Python. The rows are made by the package's own reader and encoder, so that every side trains
the very same tokens and only the assistants' words carry loss.
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
from manners.models.loading import load_tokenizer

LENGTH = 512  # the tiny model's context


def exchanges(chats: list[Conversation]) -> list[Conversation]:
    """Each question with each of its answers, once, wherever in a tree they stand."""
    found = {}
    for chat in chats:
        for asked, answered in zip(chat.messages, chat.messages[1:], strict=False):
            if answered["role"] == "assistant":
                found[asked["content"], answered["content"]] = Conversation([asked, answered], chat.source)
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="The rows and the model of the SFT line.")
    parser.add_argument("trees", help="OpenAssistant's trees, JSON Lines")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer("tiny")
    settings = DatasetConfig(path=args.trees, format="oasst", validation_share=0.0, test_share=0.0)
    chats = load_splits(OmegaConf.structured(settings)).train
    # Of whole conversations only those that fill the length are taken: so theirs do not vary.
    whole = [chat for chat in chats if tokenize([chat], tokenizer, "assistant", UNLIMITED)[0].length >= LENGTH]
    for name, rows in (("exchanges", exchanges(chats)), ("conversations", whole)):
        examples = tokenize(rows, tokenizer, "assistant", LENGTH)
        random.Random(name).shuffle(examples)
        lines = [json.dumps({"input_ids": e.input_ids, "labels": e.labels}) + "\n" for e in examples]
        (args.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    eight = args.out / "eight"
    if not eight.exists():
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        Qwen2ForCausalLM(config).save_pretrained(eight)
        tokenizer.save_pretrained(eight)


if __name__ == "__main__":
    main()
