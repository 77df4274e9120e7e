"""Files and hub datasets → ``Splits`` of ``Conversation``s: start reading at ``load_splits``.

A malformed row stops the run with file, line and field; ``dataset.on_invalid_row=skip`` counts and reports it instead.
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
from manners.data.formats import FORMATS, detect_row_format, oasst
from manners.data.formats.conversations import check_messages
from manners.data.formats.fields import InvalidRow
from manners.data.formats.reward_fields import row_metadata
from manners.data.types import Conversation, Prompt, preference_pairs
from manners.errors import MannersError, did_you_mean, printable

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("val", "valid", "dev", "eval"), "validation")


@dataclass
class Splits:
    train: list[Conversation] = field(default_factory=list)
    validation: list[Conversation] = field(default_factory=list)
    test: list[Conversation] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # one sentence for each malformed row that was skipped
    fields: set[str] = field(default_factory=set)  # the names of the rows' fields
    notes: list[str] = field(default_factory=list)  # one for each kind of row or message that the config excludes
    warnings: list[str] = field(default_factory=list)  # one for each kind of text that is read otherwise than it looks


def load_splits(cfg: DictConfig) -> Splits:
    """Load all rows of ``cfg.path``, by split. Raises MannersError for data that cannot be used."""
    splits = Splits()
    for conversation in load_conversations(cfg, splits):
        conversation = with_conversation_eos(conversation, cfg.conversation_eos)
        getattr(splits, split_of(conversation, cfg)).append(conversation)
    conversations = [conversation for name in SPLITS for conversation in getattr(splits, name)]
    for name in SPLITS:
        rows = getattr(splits, name)
        setattr(splits, name, rows[: cfg.max_rows] if cfg.max_rows else rows)
    if not splits.train:
        reason = f"all {len(splits.skipped)} rows were malformed" if splits.skipped else "it has no training rows"
        first = f" The first: {splits.skipped[0]}." if splits.skipped else ""
        raise MannersError(f"dataset.path={cfg.path}: {reason}.{first}")
    check_sample_types(conversations, splits.fields, cfg)
    if cfg.min_score_quantile is not None:
        apply_min_score_quantile(splits, cfg)
    if cfg.include_alternatives:
        splits.train, splits.validation = expand_alternatives(splits.train), expand_alternatives(splits.validation)
    return splits


def load_conversations(cfg: DictConfig, splits: Splits) -> Iterator[Conversation]:
    """Yield the conversation of each row, or those of each OpenAssistant tree; note what is excluded in ``splits``.

    Raises MannersError at the first malformed row, unless ``cfg.on_invalid_row`` is "skip".
    """
    format, rows = detect_format(cfg, raw_rows(cfg))
    if format == "oasst":
        trees = oasst.read_trees(rows, cfg.loss_roles, list(cfg.languages), list(cfg.keep_flagged))
        for source, error in trees.invalid:
            reject_row(source, error, cfg, splits)
        splits.notes += [printable(f"{count} messages: {why}") for why, count in trees.excluded.most_common()]
        yield from trees.conversations
        return
    for source, row in rows:
        try:
            if isinstance(row, InvalidRow):
                raise row
            if not isinstance(row, dict):
                raise InvalidRow(f"a row must be a JSON object, not {type(row).__name__}")
            row_format = FORMATS[format or detect_row_format(row)]
            messages = row_format.parse(row)
            if not row_format.plain_text:
                check_messages(messages, cfg.loss_roles)
            metadata = row_metadata(row, row_format, messages, cfg.score_field, "preference" in cfg.sample_types)
        except InvalidRow as error:
            reject_row(source, error, cfg, splits)
            continue
        splits.fields |= row.keys() | metadata.keys()
        yield Conversation(messages, source, metadata)


def detect_format(cfg: DictConfig, rows: Iterator[tuple[str, Any]]) -> tuple[str, Iterator[tuple[str, Any]]]:
    """The format, from the config or the first row that shows it ("" if none does), and all rows."""
    if cfg.format != "auto":
        return cfg.format, rows
    consumed = []
    for source, row in rows:
        consumed.append((source, row))
        try:
            if isinstance(row, dict):
                return detect_row_format(row), chain(consumed, rows)
        except InvalidRow:
            if cfg.on_invalid_row == "raise":
                break
    return "", chain(consumed, rows)


def reject_row(source: str, error: InvalidRow, cfg: DictConfig, splits: Splits) -> None:
    """Count a malformed row as skipped; raises MannersError unless the config says to skip it. Raises MannersError."""
    sentence = printable(f"{source}: {error}")
    if cfg.on_invalid_row == "skip":
        splits.skipped.append(sentence)
        return
    hint = "" if cfg.format == "auto" else f" If the file is not in the {cfg.format} format: dataset.format=auto."
    raise MannersError(f"{sentence}. Fix the row, or skip such rows: dataset.on_invalid_row=skip.{hint}") from None


def with_conversation_eos(conversation: Conversation, marker: str | None) -> Conversation:
    """The conversation with ``marker`` as the user's turn after the last reply; unchanged without a marker."""
    if marker is None or conversation.messages[-1]["role"] != "assistant":
        return conversation
    return replace(
        conversation,
        messages=[*conversation.messages, {"role": "user", "content": marker}],
        metadata=conversation.metadata | {"conversation_eos_turn": len(conversation.messages)},
    )


def apply_min_score_quantile(splits: Splits, cfg: DictConfig) -> None:
    """Drop training and validation rows whose score is below the quantile ``min_score_quantile`` of training scores.

    Raises MannersError if no training row has a score.
    """
    scores = sorted(row.metadata["score"] for row in splits.train if "score" in row.metadata)
    if not scores:
        raise MannersError("dataset.min_score_quantile: no training row has a score.", "dataset.min_score_quantile")
    threshold = scores[min(math.ceil(cfg.min_score_quantile * len(scores)), len(scores) - 1)]
    for name in ("train", "validation"):
        rows = getattr(splits, name)
        kept = [row for row in rows if row.metadata.get("score", -math.inf) >= threshold]
        setattr(splits, name, kept)
        splits.notes.append(f"{len(rows) - len(kept)} of {len(rows)} {name} rows: score below {threshold:g}")


def expand_alternatives(rows: list[Conversation]) -> list[Conversation]:
    """Each row, and one more row for each of its ``mismatched`` replies, which replaces the row's own reply."""
    expanded = []
    for row in rows:
        metadata = {name: value for name, value in row.metadata.items() if name != "mismatched"}
        expanded.append(replace(row, metadata=metadata))
        for other in row.metadata.get("mismatched", []):
            messages = [*row.messages[:-1], {"role": "assistant", "content": other["content"]}]
            expanded.append(replace(row, messages=messages, metadata=metadata | {"score": other["score"]}))
    return expanded


def check_sample_types(conversations: list[Conversation], fields: set[str], cfg: DictConfig) -> None:
    """Raise MannersError if ``dataset.sample_types`` has 'scored' or 'preference' and no row gives such a sample."""
    known = f"The rows have the fields {', '.join(sorted(map(str, fields)))}"
    if "scored" in cfg.sample_types and not any("score" in c.metadata for c in conversations):
        raise MannersError(
            f"dataset.score_field={cfg.score_field}: no row has a score there, and dataset.sample_types has 'scored'. "
            f"{known}: name the one that holds the score, dataset.score_field=FIELD.",
            "dataset.score_field",
        )
    if "preference" in cfg.sample_types and not any(preference_pairs([c]) for c in conversations):
        raise MannersError(
            "dataset.sample_types has 'preference', and no row has a 'rejected' reply, or a score above that of one of "
            f"its 'mismatched' replies. {known}.",
            "dataset.sample_types",
        )


def eval_prompts(cfg: DictConfig) -> list[Prompt]:
    """The dataset's fixed evaluation prompts, one {"prompt": "..."} a row; [] without ``cfg.eval_prompts_file``.

    Raises MannersError for a missing file and for a row of another form.
    """
    if cfg.eval_prompts_file is None:
        return []
    path = sources.local_path(cfg.eval_prompts_file, "dataset.eval_prompts_file")
    if path is None:
        raise MannersError(f"dataset.eval_prompts_file={cfg.eval_prompts_file}: there is no such file.")
    prompts = []
    for source, row in file_rows(path, cfg):
        if isinstance(row, InvalidRow) or not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise MannersError(f'{source}: an evaluation prompt is a line {{"prompt": "..."}}.')
        prompts.append(Prompt([{"role": "user", "content": row["prompt"]}]))
    return prompts


def raw_rows(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield (source, row) for each row; a row that cannot even be parsed comes as the InvalidRow with the reason."""
    path = sources.local_path(cfg.path)
    if path is None or sources.is_parquet_folder(path):
        yield from hub_rows(cfg)
        return
    for file in sources.data_files(path):
        yield from file_rows(file, cfg)


def file_rows(path: Path, cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield (source, row) for each row of a file. Raises MannersError for an empty or unreadable file."""
    if path.stat().st_size == 0:
        raise MannersError(f"{path}: the file is empty.")
    if path.suffix == ".json":
        yield from json_rows(path)
        return
    if path.suffix == ".csv":
        yield from csv_files.csv_rows(path, cfg.format, cfg.score_field)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # a byte order mark is not text
            if line.strip():
                yield f"{path.name}:{number}", parse_line(line, plain_text=path.suffix == ".txt")


def parse_line(line: bytes, plain_text: bool) -> Any:
    """The row in a line of a .jsonl or .txt file, or the InvalidRow with the reason that it has none."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return InvalidRow(f"byte {error.start + 1} is not UTF-8 (convert the file: iconv -f latin1 -t utf-8)")
    if plain_text:
        return {"text": text.rstrip("\r\n")}
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a bare ValueError
        return InvalidRow(f"not a JSON object on one line ({error})")


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (source, row) for each entry of a .json list. Raises MannersError if the file holds no list."""
    try:
        rows = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise MannersError(f"{path}: not valid JSON ({error}). For one object a line, name the file .jsonl.") from None
    if not isinstance(rows, list):
        raise MannersError(f"{path}: a .json file must hold a list of rows. For one object a line, name it .jsonl.")
    for number, row in enumerate(rows, 1):
        yield f"{path.name}, row {number}", row


def hub_rows(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield (source, row) for each row of a hub dataset, with the hub's split in the field ``split``.

    Raises MannersError for an unknown split in ``dataset.splits``.
    """
    from manners.runtime import hub

    tables = hub.load_dataset(cfg.path, cfg.name)
    for split in cfg.splits:
        if split not in tables:
            raise MannersError(f"dataset.splits: {cfg.path} has no {split}. {did_you_mean(split, tables)}")
    selected = {split: table for split, table in tables.items() if not cfg.splits or split in cfg.splits}
    for split, table in selected.items():
        # UltraChat calls its splits train_sft, test_sft. A single split, as in Dolly, is split like the rows of a file.
        named = {"split": split.split("_")[0]} if len(selected) > 1 else {}
        # Rows beyond max_rows are not even read where each row is independent and none can be skipped.
        limit = cfg.max_rows if named and cfg.on_invalid_row == "raise" and cfg.format != "oasst" else None
        for number, row in enumerate(islice(table, limit)):
            yield f"{cfg.path} {split}[{number}]", named | row


def split_of(conversation: Conversation, cfg: DictConfig) -> str:
    """The split that the row names, else one from a hash of its tree id or first turn.

    The hash keeps rows with the same prompt in one split, and a row in its split when others are added or removed.
    """
    named = SPLIT_NAMES.get(str(conversation.metadata.get("split")))
    if named:
        return named
    messages = conversation.messages
    first = next((m for m in messages if m["role"] != "system"), messages[0])  # all rows may share a system message
    text = conversation.metadata.get("message_tree_id", first["content"])
    fraction = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
    if fraction < cfg.test_share:
        return "test"
    return "validation" if fraction < cfg.test_share + cfg.validation_share else "train"
