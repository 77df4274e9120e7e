"""Train the tiny base model from nothing: ``make tiny``.

A Qwen2 of three million parameters learns the small world's text with AdamW, in three courses: the facts, then to
tell whether two sentences say the same, then whether somebody had it right. The result is an ordinary Hugging Face
folder in the package. Interrupt it at will: it goes on where it was.
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
from manners.tiny_world.compare import comparison_documents, verdict_documents
from manners.tiny_world.corpus import Document, documents

FOLDER = Path(str(files("manners.models") / "tiny"))
SEED, HELD_OUT_SEED = 0, 1  # of the text trained on, and of the text that perplexity is measured on
END, START_TURN, END_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def train_tokenizer(vocab_size: int = 3072) -> Qwen2Tokenizer:
    """Qwen2's byte-level BPE, learned on the world's text and on the hand-written corpora; it encodes any text."""
    texts = [*map(as_text, documents(SEED, rounds=4)), *hand_written()]
    blank = Qwen2Tokenizer(eos_token=END_TURN, pad_token=END, model_max_length=512)
    tokenizer = blank.train_new_from_iterator(texts, vocab_size, new_special_tokens=[START_TURN], show_progress=False)
    tokenizer.chat_template = CHATML
    return tokenizer


def hand_written() -> Iterator[str]:
    """What was said in the corpora that no generator wrote."""
    for name in ("strictbot/hand.jsonl", "polite_helper/train.jsonl"):
        for line in (files("manners.data") / "corpora" / name).read_text("utf-8").splitlines():
            row = json.loads(line)
            yield from [row["text"]] if "text" in row else [m["content"] for m in row["messages"]]


def as_text(document: Document) -> str:
    """A document as the model sees it: plain, or laid out as the chat template lays it out."""
    if isinstance(document, str):
        return document + END
    turns = [("user", user, "assistant", reply) for user, reply in document]
    return "".join(f"{START_TURN}{u}\n{x}{END_TURN}\n{START_TURN}{a}\n{y}{END_TURN}\n" for u, x, a, y in turns) + END


def encode_documents(texts: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """All documents' tokens end to end: (N,) uint16."""
    batches = tokenizer([as_text(d) for d in texts], add_special_tokens=False)["input_ids"]
    return np.concatenate([np.array(ids, dtype=np.uint16) for ids in batches])


def build_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    end_turn, end = (tokenizer.get_vocab()[t] for t in (END_TURN, END))
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
        pad_token_id=end,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=[end_turn, end], pad_token_id=end, do_sample=False)
    return model


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Document],
    batch: int,
    length: int,
    lr: float,
    state_file: Path,
) -> None:
    ids = torch.from_numpy(encode_documents(texts, tokenizer).astype(np.int64))
    rows = ids[: len(ids) // length * length].view(-1, length)  # (N, T)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    steps = len(rows) // batch
    # Warm up, hold, then fall to zero over the last 40 %: the fall is where small models gain most.
    shape = lambda step: min((step + 1) / 50, 1.0, (steps - step) / (0.4 * steps))  # noqa: E731
    start = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    loss_sum = 0.0
    for step in track(range(start, steps), description=f"{len(ids) / 1e6:.1f}M tokens, {steps} steps"):
        optimizer.param_groups[0]["lr"] = lr * shape(step)
        row = rows[step * batch : (step + 1) * batch]  # documents come shuffled: rows in order are a random order
        loss = model(row, labels=row, use_cache=False).loss
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
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)  # a kill leaves the old state or the new one, never half of it


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, nargs=3, default=[45, 32, 10], help="times that each course is told")
    parser.add_argument("--lr", type=float, nargs=3, default=[2.5e-3, 2e-3, 1.5e-3], help="peak learning rate of each")
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a row")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the model is written")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    work = Path("outputs/tiny")
    before: Path | None = None
    for course, rounds, lr in zip(
        (documents, comparison_documents, verdict_documents), args.rounds, args.lr, strict=True
    ):
        after = work / course.__name__
        done = work / f"{course.__name__}.done"
        if not done.exists():
            tokenizer = loading.load_tokenizer(str(before)) if before else train_tokenizer()
            model = loading.load_model(str(before)) if before else build_model(tokenizer)
            pretrain(model, tokenizer, course(SEED, rounds), args.batch, args.length, lr, after.with_suffix(".pt"))
            save_model(model, tokenizer, after)
            done.touch()
        before = after
    shutil.copytree(after, args.out, dirs_exist_ok=True)
    shutil.rmtree(work)
    print(f"wrote {args.out}")
