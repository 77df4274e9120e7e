"""Which split a row goes to: the one that it or its file names, else one by a hash of its prompt."""

import hashlib
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from manners.data.formats.fields import InvalidRow, is_empty
from manners.data.types import Conversation

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(
        ("validation", "validate", "val", "valid", "dev", "development", "eval", "evaluation"), "validation"
    ),
    **dict.fromkeys(("test", "testing"), "test"),
}


SPLIT_FOLDER = rf"({'|'.join(SPLIT_NAMES)})([^a-z]*(sft|gen|prefs|set|data|split|files))?[^a-z]*"


def split_named(name: str) -> str | None:
    """The split that a name such as "TEST", "train_sft" or "Validation" means by its first word; None for two."""
    words = re.findall(r"[^\W\d_]+", name.lower())
    named = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return SPLIT_NAMES.get(words[0]) if len(named) == 1 else None


def split_of_row(value: Any) -> str | None:
    """The split in a row's field ``split``; None if it holds nothing. Raises InvalidRow for any other value."""
    if is_empty(value):
        return None
    split = split_named(value) if isinstance(value, str) else None
    if split is None:
        hint = "if it is no split: 'dataset.columns={split: null}'"
        raise InvalidRow(f"field 'split' is {repr(value)[:40]}: expected {', '.join(SPLITS)} ({hint})")
    return split


def splits_of_files(files: list[Path], folder: Path) -> dict[Path, str]:
    """The splits that the names of files, or of their folders, say; none if they only ever say "train".

    In the name of a file, the last word may say it, too: "alpaca_train.jsonl". A name that says two splits says none.
    """
    named = {}
    for file in files:
        words = [w for w in re.findall(r"[^\W\d_]+", file.name.split(".")[0].lower()) if w != "of"]  # of 00003
        said = [word for word in words[:1] + words[-1:] if word in SPLIT_NAMES]
        folders = [part for part in file.relative_to(folder).parts[:-1] if re.fullmatch(SPLIT_FOLDER, part.lower())]
        names = said[:1] if split_named(" ".join(words)) or len(set(said)) == 1 else [] if said else folders[::-1]
        if split := next(filter(None, map(split_named, names)), None):
            named[file] = split
    return named if set(named.values()) - {"train"} else {}


def hash_fraction(conversation: Conversation, prefix_words: int) -> float:
    """A number in [0, 1) that depends on the tree id, the first turn, or the prompt that begins a plain text, alone.

    It keeps rows with the same prompt in one split, and a row in its split when others are added or removed.
    """
    messages = conversation.messages
    first = next((m for m in messages if m["role"] != "system"), messages[0])  # all rows may share a system message
    text = str(conversation.metadata.get("message_tree_id", first["content"]))
    if first["role"] == "text" and prefix_words:
        text = " ".join(text.split()[:prefix_words])
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def assign_splits(rows: list[tuple[str | None, Conversation]], cfg: DictConfig) -> dict[str, list[Conversation]]:
    """The conversations by split. A held-out split that no row names is carved out of training, by its share.

    Rows without a split are training rows where others name a held-out one.
    """
    by_split: dict[str, list[Conversation]] = {name: [] for name in SPLITS}
    test, validation = cfg.test_share, cfg.validation_share
    unnamed = "train" if {split for split, _ in rows} & {"validation", "test"} else None
    for split, conversation in rows:
        fraction = hash_fraction(conversation, cfg.prefix_words)
        by_hash = "test" if fraction < test else "validation" if fraction < test + validation else "train"
        by_split[split or unnamed or by_hash].append(conversation)
    limit = 0.0
    for name, share in (("test", test), ("validation", validation)):
        if share and not by_split[name]:
            limit += share
            by_split["train"], by_split[name] = carve(by_split["train"], limit, cfg.prefix_words)
    return by_split


def carve(rows: list[Conversation], limit: float, prefix_words: int) -> tuple[list[Conversation], list[Conversation]]:
    """The rows to keep, and those to hold out: all below ``limit`` by their hash, at least one prompt of several."""
    fractions = [hash_fraction(row, prefix_words) for row in rows]
    distinct = sorted(set(fractions))
    if len(distinct) < 2:
        return rows, []
    limit = max(limit, distinct[1])
    kept, held_out = ([r for r, f in zip(rows, fractions, strict=True) if (f < limit) == out] for out in (False, True))
    return kept, held_out
