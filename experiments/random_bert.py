"""Create a small BERT with random weights, to try a reward model on an encoder without access to the hub.

``python experiments/random_bert.py FILE.csv outputs/random_bert`` trains the vocabulary on the column "Request".
"""

import argparse
import csv
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a .csv file with a column Request")
    parser.add_argument("out", type=Path, help="output folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with args.file.open(encoding="utf-8") as file:
        texts = [row["Request"] for row in csv.DictReader(file)]
    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(texts, vocab_size=4096, min_frequency=3, show_progress=False)
    trainer.save_model(str(args.out))
    tokenizer = BertTokenizerFast(vocab=str(args.out / "vocab.txt"), do_lower_case=True, model_max_length=512)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=512,
        num_labels=1,
    )
    model = BertForSequenceClassification(config)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {len(tokenizer)} tokens")
