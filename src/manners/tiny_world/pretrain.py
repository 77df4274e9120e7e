"""Pretrains the tiny base model from scratch: ``make tiny``.

A Qwen2 of three million parameters is trained on generated text with AdamW in three stages: facts, then whether two
sentences say the same, then whether a claim was right. The result is an ordinary Hugging Face folder in the package.
An interrupted run resumes where it stopped.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from manners.models import loading
from manners.models.templates import CHATML
from manners.models.tokenizer import load_tokenizer
from manners.tiny_world.compare import comparison_documents, verdict_documents
from manners.tiny_world.corpus import Document, documents

FOLDER = Path(str(files("manners.models") / "tiny"))
SEED, EVAL_SEED = 0, 1  # of the training text, and of the text for the held-out perplexity
END_OF_TEXT, START_TURN, END_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def train_tokenizer(vocab_size: int = 3072) -> Qwen2Tokenizer:
    """Qwen2's byte-level BPE, trained on the generated text and the hand-written corpora; it encodes any text."""
    texts = [*map(document_text, documents(SEED, rounds=4)), *hand_written_texts()]
    untrained = Qwen2Tokenizer(eos_token=END_TURN, pad_token=END_OF_TEXT, model_max_length=512)
    tokenizer = untrained.train_new_from_iterator(
        texts, vocab_size, new_special_tokens=[START_TURN], show_progress=False
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def hand_written_texts() -> Iterator[str]:
    """All texts of the corpora that were not generated."""
    for name in ("strictbot_tiny/hand.jsonl", "polite_helper/train.jsonl"):
        for line in (files("manners.data") / "corpora" / name).read_text("utf-8").splitlines():
            row = json.loads(line)
            yield from [row["text"]] if "text" in row else [m["content"] for m in row["messages"]]


def document_text(document: Document) -> str:
    """The document with its special tokens; conversations are formatted as by the chat template."""
    if isinstance(document, str):
        return document + END_OF_TEXT
    messages = [message for user, reply in document for message in (("user", user), ("assistant", reply))]
    return "".join(f"{START_TURN}{role}\n{text}{END_TURN}\n" for role, text in messages) + END_OF_TEXT


def encode_documents(texts: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The token ids of all documents, concatenated: (N,) uint16."""
    batches = tokenizer([document_text(d) for d in texts], add_special_tokens=False)["input_ids"]
    return np.concatenate([np.array(ids, dtype=np.uint16) for ids in batches])


def build_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """A randomly initialized Qwen2 of three million parameters."""
    end_turn, end_of_text = (tokenizer.get_vocab()[t] for t in (END_TURN, END_OF_TEXT))
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_turn,
        pad_token_id=end_of_text,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[end_turn, end_of_text], pad_token_id=end_of_text, do_sample=False
    )
    return model


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Document],
    batch_size: int,
    sequence_length: int,
    learning_rate: float,
    state_file: Path,
) -> None:
    """One epoch over the packed documents; resumes from ``state_file`` if it exists."""
    ids = torch.from_numpy(encode_documents(texts, tokenizer).astype(np.int64))
    rows = ids[: len(ids) // sequence_length * sequence_length].view(-1, sequence_length)  # (N, T)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    steps = len(rows) // batch_size
    # Warmup, constant, then linear decay to zero over the last 40 %, in which small models gain most.
    schedule = lambda step: min((step + 1) / 50, 1.0, (steps - step) / (0.4 * steps))  # noqa: E731
    start = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    loss_sum = 0.0
    for step in track(range(start, steps), description=f"{len(ids) / 1e6:.1f}M tokens, {steps} steps"):
        optimizer.param_groups[0]["lr"] = learning_rate * schedule(step)
        batch = rows[step * batch_size : (step + 1) * batch_size]  # in order: the documents are shuffled already
        loss = model(batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss_sum += loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}  loss {loss_sum / 100:.3f}", flush=True)
            loss_sum = 0.0
        if (step + 1) % 250 == 0:
            save_state(state_file, step + 1, model, optimizer)


def save_state(path: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the training state atomically: if the process is killed, the old state remains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model in bfloat16 and its tokenizer as a Hugging Face folder."""
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, nargs=3, default=[45, 32, 10], help="rounds of text per stage")
    parser.add_argument("--learning-rate", type=float, nargs=3, default=[2.5e-3, 2e-3, 1.5e-3], help="peak, per stage")
    parser.add_argument("--batch-size", type=int, default=8, help="rows per step")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens per row")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write the model to")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    work = Path("outputs/tiny")
    previous: Path | None = None
    stages = (documents, comparison_documents, verdict_documents)
    for stage, rounds, learning_rate in zip(stages, args.rounds, args.learning_rate, strict=True):
        folder, done = work / stage.__name__, work / f"{stage.__name__}.done"
        if not done.exists():
            tokenizer = load_tokenizer(str(previous)) if previous else train_tokenizer()
            model = loading.load_model(str(previous)) if previous else build_model(tokenizer)
            texts, state_file = stage(SEED, rounds), folder.with_suffix(".pt")
            pretrain(model, tokenizer, texts, args.batch_size, args.sequence_length, learning_rate, state_file)
            save_model(model, tokenizer, folder)
            done.touch()
        previous = folder
    shutil.copytree(folder, args.out, dirs_exist_ok=True)
    shutil.rmtree(work)
    print(f"wrote {args.out}")
