"""Write what all sides of the reward line train on: requests with scores as token ids, and two BERTs at random.

Run it with the project's Python. The rows are made by the package's own reader and encoder, scores standardised.
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
    """Both models, each with the tokenizer, whose vocabulary is learned from the texts."""
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(texts, vocab_size=4096, min_frequency=3, show_progress=False)
    learner.save_model(str(out))
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
            hidden_dropout_prob=0.0,  # so that losses compare; TRL turns dropout off by itself
            attention_probs_dropout_prob=0.0,
        )
        BertForSequenceClassification(config).save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="The rows and the models of the reward line.")
    parser.add_argument("requests", help="the Stanford Politeness Corpus, .csv")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    settings = DatasetConfig(
        path=args.requests, format="politeness", sample_types=["scored"], validation_share=0.0, test_share=0.0
    )
    rows = scored_replies(load_splits(OmegaConf.structured(settings)).train)
    tokenizer = save_models([row.reply for row in rows], args.out)
    units = ScoreNormalizer.from_scores([row.score for row in rows])
    passages = scored_examples(rows, tokenizer, 512, False, units.mean, units.scale)
    random.Random("requests").shuffle(passages)
    lines = [json.dumps({"input_ids": p.input_ids, "score": p.target}) + "\n" for p in passages]
    (args.out / "requests.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
