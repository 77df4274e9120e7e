"""Files and hub datasets → rows. What a format calls its fields, only ``formats`` and its parts know.

A malformed row is refused with file, line and field; ``on_error=skip`` counts and reports it instead.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from manners.data import formats, source, tables
from manners.data.fields import BadRow
from manners.data.rows import Chat, Message, Prompt, pairs
from manners.errors import MannersError

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("val", "valid", "dev", "eval"), "validation")


@dataclass
class Splits:
    train: list[Chat] = field(default_factory=list)
    validation: list[Chat] = field(default_factory=list)
    test: list[Chat] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # one sentence for each row left out


def read(cfg: DictConfig) -> Splits:
    """All rows of ``cfg.path``, by split. Raises MannersError for data that cannot be used."""
    splits, seen = Splits(), set()
    format = None if cfg.format == "auto" else cfg.format
    for where, raw in raw_rows(cfg):
        try:
            if isinstance(raw, BadRow):
                raise raw
            if not isinstance(raw, dict):
                raise BadRow(f"a row must be a JSON object, not {type(raw).__name__}")
            format = format or formats.detect(raw)
            messages = formats.FORMATS[format](raw)
            if format not in formats.PLAIN:
                formats.check_messages(messages, cfg.train_on)
            extra = formats.extra_of(raw, format, messages, cfg.score_field, "pairs" in cfg.views)
        except BadRow as bad:
            sentence = f"{where}: {bad}"
            if cfg.on_error == "raise":
                other = "" if cfg.format == "auto" else f" If it is no {cfg.format} file: dataset.format=auto."
                advice = "Mend the row, or leave such rows out: dataset.on_error=skip."
                raise MannersError(f"{sentence}. {advice}{other}") from None
            splits.skipped.append(sentence)
            continue
        seen |= raw.keys() | extra.keys()
        getattr(splits, split_of(messages, extra, cfg)).append(Chat(messages, where, extra))
    chats = [chat for name in SPLITS for chat in getattr(splits, name)]
    for name in SPLITS:
        rows = getattr(splits, name)
        setattr(splits, name, rows[: cfg.max_rows] if cfg.max_rows else rows)
    if not splits.train:
        why = f"all {len(splits.skipped)} rows were malformed" if splits.skipped else "it has no training rows"
        first = f" The first: {splits.skipped[0]}." if splits.skipped else ""
        raise MannersError(f"dataset.path={cfg.path}: {why}.{first}")
    check_views(chats, seen, cfg)
    return splits


def check_views(chats: list[Chat], seen: set[str], cfg: DictConfig) -> None:
    """Raise MannersError where the data was said to offer scores or pairs and no row has them."""
    fields = f"The rows have the fields {', '.join(sorted(map(str, seen)))}"
    if "scored" in cfg.views and not any("score" in chat.extra for chat in chats):
        raise MannersError(
            f"dataset.score_field={cfg.score_field}: no row has a score there, and dataset.views has 'scored'. "
            f"{fields}: name the one that holds the score, dataset.score_field=FIELD.",
            "dataset.score_field",
        )
    if "pairs" in cfg.views and not any(pairs([chat]) for chat in chats):
        raise MannersError(
            "dataset.views has 'pairs', and no row has a 'rejected' reply, or a score above that of its 'mismatched' "
            f"replies. {fields}.",
            "dataset.views",
        )


def eval_prompts(cfg: DictConfig) -> list[Prompt]:
    """The dataset's own fixed prompts: lines of {"prompt": "..."}; none where it names no file."""
    if cfg.eval_prompts is None:
        return []
    path = source.local_path(cfg.eval_prompts, "dataset.eval_prompts")
    if path is None:
        raise MannersError(f"dataset.eval_prompts={cfg.eval_prompts}: there is no such file.")
    found = []
    for where, raw in lines(path, cfg):
        if isinstance(raw, BadRow) or not isinstance(raw, dict) or not isinstance(raw.get("prompt"), str):
            raise MannersError(f'{where}: an evaluation prompt is a line {{"prompt": "..."}}.')
        found.append(Prompt([{"role": "user", "content": raw["prompt"]}]))
    return found


def raw_rows(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """(where, row) for each row; a row that cannot even be parsed comes as the BadRow that says why."""
    path = source.local_path(cfg.path)
    if path is None:
        yield from hub_rows(cfg)
        return
    for file in source.files_of(path):
        yield from lines(file, cfg)


def lines(path: Path, cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    if path.stat().st_size == 0:
        raise MannersError(f"{path}: the file is empty.")
    if path.suffix == ".json":
        yield from json_list(path)
        return
    if path.suffix == ".csv":
        yield from tables.rows(path, cfg.format, cfg.score_field)
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


def json_list(path: Path) -> Iterator[tuple[str, Any]]:
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
    from manners import hub

    for split, table in hub.load_dataset(cfg.path, cfg.name).items():
        name = split.split("_")[0]  # UltraChat calls its splits train_sft, test_sft
        for number, row in enumerate(table):
            yield f"{cfg.path} {split}[{number}]", {"split": name} | row


def split_of(messages: list[Message], extra: dict[str, Any], cfg: DictConfig) -> str:
    """The split that the row names, or one drawn from a hash of its first turn: a prompt never crosses splits."""
    named = SPLIT_NAMES.get(str(extra.get("split")))
    if named:
        return named
    first = next((m for m in messages if m["role"] != "system"), messages[0])  # all rows may share a system message
    share = int(hashlib.sha256(first["content"].encode()).hexdigest()[:8], 16) / 2**32
    if share < cfg.test_share:
        return "test"
    return "validation" if share < cfg.test_share + cfg.validation_share else "train"
