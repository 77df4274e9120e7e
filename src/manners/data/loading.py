"""Files and hub datasets → rows. What a format calls its fields, only ``formats`` and its parts know.

A malformed row is refused with file, line and field; ``on_invalid_row=skip`` counts and reports it instead.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from manners.data import csv_files, sources
from manners.data.formats import conversations, oasst
from manners.data.formats.fields import BadRow
from manners.data.types import Conversation, Prompt, preference_pairs
from manners.errors import MannersError, did_you_mean, printable

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("val", "valid", "dev", "eval"), "validation")


@dataclass
class Splits:
    train: list[Conversation] = field(default_factory=list)
    validation: list[Conversation] = field(default_factory=list)
    test: list[Conversation] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # one sentence for each row left out as malformed
    fields: set[str] = field(default_factory=set)  # what the rows have
    notes: list[str] = field(default_factory=list)  # one for each kind of row or message that the config leaves out


def load_splits(cfg: DictConfig) -> Splits:
    """All rows of ``cfg.path``, by split. Raises MannersError for data that cannot be used."""
    splits = Splits()
    for chat in load_conversations(cfg, splits):
        chat = with_conversation_eos(chat, cfg.conversation_eos)
        getattr(splits, split_of(chat, cfg)).append(chat)
    chats = [chat for name in SPLITS for chat in getattr(splits, name)]
    for name in SPLITS:
        rows = getattr(splits, name)
        setattr(splits, name, rows[: cfg.max_rows] if cfg.max_rows else rows)
    if not splits.train:
        why = f"all {len(splits.skipped)} rows were malformed" if splits.skipped else "it has no training rows"
        first = f" The first: {splits.skipped[0]}." if splits.skipped else ""
        raise MannersError(f"dataset.path={cfg.path}: {why}.{first}")
    check_sample_types(chats, splits.fields, cfg)
    if cfg.min_score_quantile is not None:
        apply_min_score_quantile(splits, cfg)
    if cfg.include_alternatives:
        splits.train, splits.validation = expand_alternatives(splits.train), expand_alternatives(splits.validation)
    return splits


def load_conversations(cfg: DictConfig, splits: Splits) -> Iterator[Conversation]:
    """Each row's conversation, or those of each OpenAssistant tree; what is left out is noted in ``splits``."""
    format, rows = detect_format(cfg, raw_rows(cfg))
    if format == "oasst":
        walked = oasst.read_trees(rows, cfg.loss_roles, list(cfg.languages), list(cfg.keep_flagged))
        for where, bad in walked.bad:
            reject_row(where, bad, cfg, splits)
        splits.notes += [printable(f"{count} messages: {why}") for why, count in walked.left_out.most_common()]
        yield from walked.chats
        return
    for where, raw in rows:
        try:
            if isinstance(raw, BadRow):
                raise raw
            if not isinstance(raw, dict):
                raise BadRow(f"a row must be a JSON object, not {type(raw).__name__}")
            messages = conversations.FORMATS[format or conversations.detect_row_format(raw)](raw)
            if format not in conversations.PLAIN_TEXT_FORMATS:
                conversations.check_messages(messages, cfg.loss_roles)
            extra = conversations.row_metadata(raw, format, messages, cfg.score_field, "preference" in cfg.sample_types)
        except BadRow as bad:
            reject_row(where, bad, cfg, splits)
            continue
        splits.fields |= raw.keys() | extra.keys()
        yield Conversation(messages, where, extra)


def detect_format(cfg: DictConfig, rows: Iterator[tuple[str, Any]]) -> tuple[str, Iterator[tuple[str, Any]]]:
    """The format, from the config or the first row that tells, and all rows; "" where none does."""
    if cfg.format != "auto":
        return cfg.format, rows
    seen = []
    for where, raw in rows:
        seen.append((where, raw))
        try:
            if isinstance(raw, dict):
                return conversations.detect_row_format(raw), chain(seen, rows)
        except BadRow:
            if cfg.on_invalid_row == "raise":
                break
    return "", chain(seen, rows)


def reject_row(where: str, bad: BadRow, cfg: DictConfig, splits: Splits) -> None:
    """Stop at a malformed row, or count it."""
    sentence = printable(f"{where}: {bad}")
    if cfg.on_invalid_row == "skip":
        splits.skipped.append(sentence)
        return
    other = "" if cfg.format == "auto" else f" If it is no {cfg.format} file: dataset.format=auto."
    raise MannersError(f"{sentence}. Mend the row, or leave such rows out: dataset.on_invalid_row=skip.{other}") from None


def with_conversation_eos(chat: Conversation, words: str | None) -> Conversation:
    """The conversation and, after its last reply, the user's sign that it is over."""
    if words is None or chat.messages[-1]["role"] != "assistant":
        return chat
    return replace(
        chat,
        messages=[*chat.messages, {"role": "user", "content": words}],
        metadata=chat.metadata | {"ends": len(chat.messages)},
    )


def apply_min_score_quantile(splits: Splits, cfg: DictConfig) -> None:
    """Leave training and validation rows whose score is below the training rows' quantile ``min_score_quantile``."""
    scores = sorted(chat.metadata["score"] for chat in splits.train if "score" in chat.metadata)
    if not scores:
        raise MannersError("dataset.min_score_quantile: no training row has a score.", "dataset.min_score_quantile")
    least = scores[min(math.ceil(cfg.min_score_quantile * len(scores)), len(scores) - 1)]
    for name in ("train", "validation"):
        rows = getattr(splits, name)
        kept = [chat for chat in rows if chat.metadata.get("score", -math.inf) >= least]
        setattr(splits, name, kept)
        splits.notes.append(f"{len(rows) - len(kept)} of {len(rows)} {name} rows: score below {least:g}")


def expand_alternatives(chats: list[Conversation]) -> list[Conversation]:
    """Each row, and one more for each of its ``mismatched`` replies, with that in the place of its own."""
    found = []
    for chat in chats:
        extra = {name: value for name, value in chat.metadata.items() if name != "mismatched"}
        found.append(replace(chat, metadata=extra))
        for other in chat.metadata.get("mismatched", []):
            reply = {"role": "assistant", "content": other["content"]}
            found.append(replace(chat, messages=[*chat.messages[:-1], reply], metadata=extra | {"score": other["score"]}))
    return found


def check_sample_types(chats: list[Conversation], fields: set[str], cfg: DictConfig) -> None:
    """Raise MannersError where the data was said to offer scores or pairs and no row has them."""
    known = f"The rows have the fields {', '.join(sorted(map(str, fields)))}"
    if "scored" in cfg.sample_types and not any("score" in chat.metadata for chat in chats):
        raise MannersError(
            f"dataset.score_field={cfg.score_field}: no row has a score there, and dataset.sample_types has 'scored'. "
            f"{known}: name the one that holds the score, dataset.score_field=FIELD.",
            "dataset.score_field",
        )
    if "preference" in cfg.sample_types and not any(preference_pairs([chat]) for chat in chats):
        raise MannersError(
            "dataset.sample_types has 'preference', and no row has a 'rejected' reply, or a score above that of its 'mismatched' "
            f"replies. {known}.",
            "dataset.sample_types",
        )


def eval_prompts(cfg: DictConfig) -> list[Prompt]:
    """The dataset's own fixed prompts: lines of {"prompt": "..."}; none where it names no file."""
    if cfg.eval_prompts_file is None:
        return []
    path = sources.local_path(cfg.eval_prompts_file, "dataset.eval_prompts_file")
    if path is None:
        raise MannersError(f"dataset.eval_prompts_file={cfg.eval_prompts_file}: there is no such file.")
    found = []
    for where, raw in file_rows(path, cfg):
        if isinstance(raw, BadRow) or not isinstance(raw, dict) or not isinstance(raw.get("prompt"), str):
            raise MannersError(f'{where}: an evaluation prompt is a line {{"prompt": "..."}}.')
        found.append(Prompt([{"role": "user", "content": raw["prompt"]}]))
    return found


def raw_rows(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """(where, row) for each row; a row that cannot even be parsed comes as the BadRow that says why."""
    path = sources.local_path(cfg.path)
    if path is None or sources.is_parquet_folder(path):
        yield from hub_rows(cfg)
        return
    for file in sources.data_files(path):
        yield from file_rows(file, cfg)


def file_rows(path: Path, cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    if path.stat().st_size == 0:
        raise MannersError(f"{path}: the file is empty.")
    if path.suffix == ".json":
        yield from json_rows(path)
        return
    if path.suffix == ".csv":
        yield from csv_files.csv_rows(path, cfg.format, cfg.score_field)
        return
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            data = data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data  # a byte order mark is no text
            if data.strip():
                yield f"{path.name}:{number}", parse_line(data, plain=path.suffix == ".txt")


def parse_line(data: bytes, plain: bool) -> Any:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRow(f"byte {error.start + 1} is not UTF-8 (convert the file: iconv -f latin1 -t utf-8)")
    if plain:
        return {"text": text.rstrip("\r\n")}
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a bare ValueError
        return BadRow(f"not a JSON object on one line ({error})")


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise MannersError(f"{path}: not valid JSON ({error}). One object a line belongs in a .jsonl file.") from None
    if not isinstance(rows, list):
        raise MannersError(f"{path}: a .json file must hold a list of rows; one object a line belongs in .jsonl.")
    for number, row in enumerate(rows, 1):
        yield f"{path.name}, row {number}", row


def hub_rows(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Rows of a hub dataset, with the split that the hub names."""
    from manners.runtime import hub

    tables = hub.load_dataset(cfg.path, cfg.name)
    for split in cfg.splits:
        if split not in tables:
            raise MannersError(f"dataset.splits: {cfg.path} has no {split}. {did_you_mean(split, tables)}")
    chosen = {split: table for split, table in tables.items() if not cfg.splits or split in cfg.splits}
    for split, table in chosen.items():
        # UltraChat calls its splits train_sft, test_sft. An only split, as Dolly has, is dealt like the rows of a file.
        named = {"split": split.split("_")[0]} if len(chosen) > 1 else {}
        enough = cfg.max_rows if named and cfg.on_invalid_row == "raise" and cfg.format != "oasst" else None
        for number, row in enumerate(islice(table, enough)):  # the rest would only be read to be left out
            yield f"{cfg.path} {split}[{number}]", named | row


def split_of(chat: Conversation, cfg: DictConfig) -> str:
    """The split that the row names, or one drawn from a hash of its tree or first turn: a prompt never crosses."""
    named = SPLIT_NAMES.get(str(chat.metadata.get("split")))
    if named:
        return named
    first = next(
        (m for m in chat.messages if m["role"] != "system"), chat.messages[0]
    )  # all may share a system message
    text = chat.metadata.get("message_tree_id", first["content"])
    share = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
    if share < cfg.test_share:
        return "test"
    return "validation" if share < cfg.test_share + cfg.validation_share else "train"
