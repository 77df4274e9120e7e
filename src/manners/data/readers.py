"""Files and hub datasets → rows. What a format calls its fields, only ``formats`` and its parts know.

A malformed row is refused with file, line and field; ``on_error=skip`` counts and reports it instead.
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

from manners.data import formats, oasst, source, tables
from manners.data.fields import BadRow
from manners.data.rows import Chat, Prompt, pairs
from manners.errors import MannersError, did_you_mean, plain

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("val", "valid", "dev", "eval"), "validation")


@dataclass
class Splits:
    train: list[Chat] = field(default_factory=list)
    validation: list[Chat] = field(default_factory=list)
    test: list[Chat] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # one sentence for each row left out as malformed
    fields: set[str] = field(default_factory=set)  # what the rows have
    notes: list[str] = field(default_factory=list)  # one for each kind of row or message that the config leaves out


def read(cfg: DictConfig) -> Splits:
    """All rows of ``cfg.path``, by split. Raises MannersError for data that cannot be used."""
    splits = Splits()
    for chat in chats_of(cfg, splits):
        chat = with_end(chat, cfg.end_of_conversation)
        getattr(splits, split_of(chat, cfg)).append(chat)
    chats = [chat for name in SPLITS for chat in getattr(splits, name)]
    for name in SPLITS:
        rows = getattr(splits, name)
        setattr(splits, name, rows[: cfg.max_rows] if cfg.max_rows else rows)
    if not splits.train:
        why = f"all {len(splits.skipped)} rows were malformed" if splits.skipped else "it has no training rows"
        first = f" The first: {splits.skipped[0]}." if splits.skipped else ""
        raise MannersError(f"dataset.path={cfg.path}: {why}.{first}")
    check_views(chats, splits.fields, cfg)
    if cfg.score_above is not None:
        keep_high_scores(splits, cfg)
    if cfg.every_reply:
        splits.train, splits.validation = spread(splits.train), spread(splits.validation)
    return splits


def chats_of(cfg: DictConfig, splits: Splits) -> Iterator[Chat]:
    """Each row's conversation, or those of each OpenAssistant tree; what is left out is noted in ``splits``."""
    format, rows = detect(cfg, raw_rows(cfg))
    if format == "oasst":
        walked = oasst.walk(rows, cfg.train_on, list(cfg.languages), list(cfg.keep))
        for where, bad in walked.bad:
            refuse(where, bad, cfg, splits)
        splits.notes += [plain(f"{count} messages: {why}") for why, count in walked.left_out.most_common()]
        yield from walked.chats
        return
    for where, raw in rows:
        try:
            if isinstance(raw, BadRow):
                raise raw
            if not isinstance(raw, dict):
                raise BadRow(f"a row must be a JSON object, not {type(raw).__name__}")
            messages = formats.FORMATS[format or formats.detect(raw)](raw)
            if format not in formats.PLAIN:
                formats.check_messages(messages, cfg.train_on)
            extra = formats.extra_of(raw, format, messages, cfg.score_field, "pairs" in cfg.views)
        except BadRow as bad:
            refuse(where, bad, cfg, splits)
            continue
        splits.fields |= raw.keys() | extra.keys()
        yield Chat(messages, where, extra)


def detect(cfg: DictConfig, rows: Iterator[tuple[str, Any]]) -> tuple[str, Iterator[tuple[str, Any]]]:
    """The format, from the config or the first row that tells, and all rows; "" where none does."""
    if cfg.format != "auto":
        return cfg.format, rows
    seen = []
    for where, raw in rows:
        seen.append((where, raw))
        try:
            if isinstance(raw, dict):
                return formats.detect(raw), chain(seen, rows)
        except BadRow:
            if cfg.on_error == "raise":
                break
    return "", chain(seen, rows)


def refuse(where: str, bad: BadRow, cfg: DictConfig, splits: Splits) -> None:
    """Stop at a malformed row, or count it."""
    sentence = plain(f"{where}: {bad}")
    if cfg.on_error == "skip":
        splits.skipped.append(sentence)
        return
    other = "" if cfg.format == "auto" else f" If it is no {cfg.format} file: dataset.format=auto."
    raise MannersError(f"{sentence}. Mend the row, or leave such rows out: dataset.on_error=skip.{other}") from None


def with_end(chat: Chat, words: str | None) -> Chat:
    """The conversation and, after its last reply, the user's sign that it is over."""
    if words is None or chat.messages[-1]["role"] != "assistant":
        return chat
    return replace(
        chat,
        messages=[*chat.messages, {"role": "user", "content": words}],
        extra=chat.extra | {"ends": len(chat.messages)},
    )


def keep_high_scores(splits: Splits, cfg: DictConfig) -> None:
    """Leave training and validation rows whose score is below the training rows' quantile ``score_above``."""
    scores = sorted(chat.extra["score"] for chat in splits.train if "score" in chat.extra)
    if not scores:
        raise MannersError("dataset.score_above: no training row has a score.", "dataset.score_above")
    least = scores[min(math.ceil(cfg.score_above * len(scores)), len(scores) - 1)]
    for name in ("train", "validation"):
        rows = getattr(splits, name)
        kept = [chat for chat in rows if chat.extra.get("score", -math.inf) >= least]
        setattr(splits, name, kept)
        splits.notes.append(f"{len(rows) - len(kept)} of {len(rows)} {name} rows: score below {least:g}")


def spread(chats: list[Chat]) -> list[Chat]:
    """Each row, and one more for each of its ``mismatched`` replies, with that in the place of its own."""
    found = []
    for chat in chats:
        extra = {name: value for name, value in chat.extra.items() if name != "mismatched"}
        found.append(replace(chat, extra=extra))
        for other in chat.extra.get("mismatched", []):
            reply = {"role": "assistant", "content": other["content"]}
            found.append(replace(chat, messages=[*chat.messages[:-1], reply], extra=extra | {"score": other["score"]}))
    return found


def check_views(chats: list[Chat], fields: set[str], cfg: DictConfig) -> None:
    """Raise MannersError where the data was said to offer scores or pairs and no row has them."""
    known = f"The rows have the fields {', '.join(sorted(map(str, fields)))}"
    if "scored" in cfg.views and not any("score" in chat.extra for chat in chats):
        raise MannersError(
            f"dataset.score_field={cfg.score_field}: no row has a score there, and dataset.views has 'scored'. "
            f"{known}: name the one that holds the score, dataset.score_field=FIELD.",
            "dataset.score_field",
        )
    if "pairs" in cfg.views and not any(pairs([chat]) for chat in chats):
        raise MannersError(
            "dataset.views has 'pairs', and no row has a 'rejected' reply, or a score above that of its 'mismatched' "
            f"replies. {known}.",
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
    if path is None or source.is_table(path):
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

    tables = hub.load_dataset(cfg.path, cfg.name)
    for split in cfg.splits:
        if split not in tables:
            raise MannersError(f"dataset.splits: {cfg.path} has no {split}. {did_you_mean(split, tables)}")
    chosen = {split: table for split, table in tables.items() if not cfg.splits or split in cfg.splits}
    for split, table in chosen.items():
        # UltraChat calls its splits train_sft, test_sft. An only split, as Dolly has, is dealt like the rows of a file.
        named = {"split": split.split("_")[0]} if len(chosen) > 1 else {}
        enough = cfg.max_rows if named and cfg.on_error == "raise" and cfg.format != "oasst" else None
        for number, row in enumerate(islice(table, enough)):  # the rest would only be read to be left out
            yield f"{cfg.path} {split}[{number}]", named | row


def split_of(chat: Chat, cfg: DictConfig) -> str:
    """The split that the row names, or one drawn from a hash of its tree or first turn: a prompt never crosses."""
    named = SPLIT_NAMES.get(str(chat.extra.get("split")))
    if named:
        return named
    first = next(
        (m for m in chat.messages if m["role"] != "system"), chat.messages[0]
    )  # all may share a system message
    text = chat.extra.get("message_tree_id", first["content"])
    share = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
    if share < cfg.test_share:
        return "test"
    return "validation" if share < cfg.test_share + cfg.validation_share else "train"
