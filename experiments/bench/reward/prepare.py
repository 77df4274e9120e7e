"""Write the rows of the reward line (requests as token ids, with scores), and two BERTs with random weights.

Run it with the project's Python. The rows are loaded and tokenized by the package, and their scores standardized.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from manners.config.schema import DatasetConfig
from manners.data.loading import load_splits
from manners.data.reward_examples import scored_examples
from manners.data.types import scored_replies
from manners.models.reward_model import ScoreNormalizer

SHAPES = {"small": (256, 4, 8), "minilm": (384, 6, 12)}  # width, layers, heads


def save_models(texts: list[str], out: Path) -> BertTokenizerFast:
    """Save both models, each with a tokenizer trained on the texts."""
    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(texts, vocab_size=4096, min_frequency=3, show_progress=False)
    trainer.save_model(str(out))
    tokenizer = BertTokenizerFast(vocab=str(out / "vocab.txt"), do_lower_case=True, model_max_length=512)
    for name, (width, layers, heads) in SHAPES.items():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            num_labels=1,
            problem_type="regression",
            hidden_dropout_prob=0.0,  # so that losses are comparable; TRL disables dropout by default
            attention_probs_dropout_prob=0.0,
        )
        BertForSequenceClassification(config).save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the rows and the models of the reward line.")
    parser.add_argument("requests", help="the .csv of the Stanford Politeness Corpus")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    settings = DatasetConfig(
        path=args.requests, format="politeness", sample_types=["scored"], validation_share=0.0, test_share=0.0
    )
    rows = scored_replies(load_splits(OmegaConf.structured(settings)).train)
    tokenizer = save_models([row.reply for row in rows], args.out)
    normalizer = ScoreNormalizer.from_scores([row.score for row in rows])
    examples = scored_examples(rows, tokenizer, 512, False, normalizer.mean, normalizer.scale)
    random.Random("requests").shuffle(examples)
    lines = [json.dumps({"input_ids": e.input_ids, "score": e.target}) + "\n" for e in examples]
    (args.out / "requests.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
