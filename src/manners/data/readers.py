"""Files and hub datasets → rows. The only place that knows what a format calls its fields.

A malformed row is refused with file, line and field; ``on_error=skip`` counts and reports it instead.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from manners.data import source
from manners.data.rows import ROLES, Chat, Message, Prompt
from manners.errors import MannersError

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("val", "valid", "dev", "eval"), "validation")


class BadRow(Exception):
    """Why a row cannot be used: the field, and what is wrong with it."""


@dataclass
class Splits:
    train: list[Chat] = field(default_factory=list)
    validation: list[Chat] = field(default_factory=list)
    test: list[Chat] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # one sentence for each row left out


def read(cfg: DictConfig) -> Splits:
    """All rows of ``cfg.path``, by split. Raises MannersError for data that cannot be used."""
    splits = Splits()
    parse: Callable[[Any], list[Message]] | None = None if cfg.format == "auto" else FORMATS[cfg.format]
    for where, raw in raw_rows(cfg):
        try:
            if isinstance(raw, BadRow):
                raise raw
            if not isinstance(raw, dict):
                raise BadRow(f"a row must be a JSON object, not {type(raw).__name__}")
            parse = parse or detect(raw)
            messages = parse(raw)
            if parse is not parse_text:  # there nobody speaks
                check_messages(messages, cfg.train_on)
        except BadRow as bad:
            sentence = f"{where}: {bad}"
            if cfg.on_error == "raise":
                other = "" if cfg.format == "auto" else f" If it is no {cfg.format} file: dataset.format=auto."
                advice = "Mend the row, or leave such rows out: dataset.on_error=skip."
                raise MannersError(f"{sentence}. {advice}{other}") from None
            splits.skipped.append(sentence)
            continue
        extra = {k: v for k, v in raw.items() if k not in FIELDS}
        getattr(splits, split_of(messages, extra, cfg)).append(Chat(messages, where, extra))
    for name in SPLITS:
        rows = getattr(splits, name)
        setattr(splits, name, rows[: cfg.max_rows] if cfg.max_rows else rows)
    if not splits.train:
        why = f"all {len(splits.skipped)} rows were malformed" if splits.skipped else "it has no training rows"
        first = f" The first: {splits.skipped[0]}." if splits.skipped else ""
        raise MannersError(f"dataset.path={cfg.path}: {why}.{first}")
    return splits


def eval_prompts(cfg: DictConfig) -> list[Prompt]:
    """The dataset's own fixed prompts: lines of {"prompt": "..."}; none where it names no file."""
    if cfg.eval_prompts is None:
        return []
    path = source.local_path(cfg.eval_prompts, "dataset.eval_prompts")
    if path is None:
        raise MannersError(f"dataset.eval_prompts={cfg.eval_prompts}: there is no such file.")
    found = []
    for where, raw in lines(path):
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
        yield from lines(file)


def lines(path: Path) -> Iterator[tuple[str, Any]]:
    if path.stat().st_size == 0:
        raise MannersError(f"{path}: the file is empty.")
    if path.suffix == ".json":
        yield from json_list(path)
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


def text_field(row: dict, name: str, empty: bool = False) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        given = "is missing" if name not in row else f"must be text, not {type(value).__name__}"
        raise BadRow(f"field '{name}' {given}")
    if not empty and not value.strip():
        raise BadRow(f"field '{name}' is empty")
    if re.search("[\ud800-\udfff]", value):  # JSON can write half of a character, as \ud83d; nothing can encode it
        raise BadRow(f"field '{name}' has half of a surrogate pair")
    return value


def list_field(row: dict, name: str) -> list:
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise BadRow(f"field '{name}' " + ("is missing" if name not in row else "must be a list with entries"))
    return value


def parse_messages(row: dict) -> list[Message]:
    """{"messages": [{"role": "user", "content": "..."}, ...]}, as OpenAI, TRL and UltraChat have it."""
    return [turn(entry, f"messages[{i}]", "role", "content") for i, entry in enumerate(list_field(row, "messages"))]


def parse_sharegpt(row: dict) -> list[Message]:
    """{"conversations": [{"from": "human", "value": "..."}, ...]}."""
    names = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}
    found = [turn(e, f"conversations[{i}]", "from", "value") for i, e in enumerate(list_field(row, "conversations"))]
    return [{"role": names.get(m["role"], m["role"]), "content": m["content"]} for m in found]


def turn(entry: Any, at: str, role: str, content: str) -> Message:
    if not isinstance(entry, dict):
        raise BadRow(f"field '{at}' must be an object with '{role}' and '{content}'")
    try:
        return {"role": text_field(entry, role), "content": text_field(entry, content)}
    except BadRow as bad:
        raise BadRow(str(bad).replace("field '", f"field '{at}.", 1)) from None


def parse_prompt_completion(row: dict) -> list[Message]:
    """{"prompt": "...", "completion": "..."}, or both as lists of messages, as TRL has it."""
    found = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row.get(name), list):
            found += [turn(e, f"{name}[{i}]", "role", "content") for i, e in enumerate(list_field(row, name))]
        else:
            found.append({"role": role, "content": text_field(row, name)})
    return found


def parse_alpaca(row: dict) -> list[Message]:
    """{"instruction": "...", "input": "...", "output": "..."}; the input may be empty or missing."""
    asked = text_field(row, "instruction")
    given = text_field(row, "input", empty=True) if row.get("input") is not None else ""
    user = f"{asked}\n\n{given}" if given.strip() else asked
    return [{"role": "user", "content": user}, {"role": "assistant", "content": text_field(row, "output")}]


def parse_marked(row: dict) -> list[Message]:
    """{"text": "<|user|>…<|assistant|>…"}: the markers stand before their turns."""
    parts = re.split(r"<\|(system|user|assistant)\|>", text_field(row, "text"))
    if parts[0].strip() or len(parts) < 3:
        raise BadRow("field 'text' must begin with <|user|> or <|system|>")
    found = [{"role": r, "content": c.strip()} for r, c in zip(parts[1::2], parts[2::2], strict=True)]
    for message in found:
        if not message["content"]:
            raise BadRow(f"field 'text' has an empty <|{message['role']}|> turn")
    return found


def parse_text(row: dict) -> list[Message]:
    """{"text": "..."}, or a line of a .txt file: all of it is learned, nobody speaks."""
    return [{"role": "text", "content": text_field(row, "text")}]


FORMATS: dict[str, Callable[[dict], list[Message]]] = {
    "messages": parse_messages,
    "prompt_completion": parse_prompt_completion,
    "marked": parse_marked,
    "sharegpt": parse_sharegpt,
    "alpaca": parse_alpaca,
    "text": parse_text,
}
FIELDS = ("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "text")


def detect(row: dict) -> Callable[[Any], list[Message]]:
    """The format of a row, by the fields that it has. Text comes last: Alpaca's rows hold theirs rendered, too."""
    signs = {"messages": "messages", "conversations": "sharegpt", "completion": "prompt_completion", "output": "alpaca"}
    for sign, name in signs.items():
        if sign in row:
            return FORMATS[name]
    if "text" in row:
        marked = isinstance(row["text"], str) and re.match(r"\s*<\|(system|user|assistant)\|>", row["text"])
        return parse_marked if marked else parse_text
    raise BadRow(f"no known field in {sorted(row)[:8]}: expected one of {', '.join(FIELDS)}")


def check_messages(messages: list[Message], train_on: str) -> None:
    """An optional system message first, then user and assistant by turns, and someone whose words are learned."""
    talk = messages[1:] if messages[0]["role"] == "system" else messages
    for i, message in enumerate(talk):
        if message["role"] not in ROLES:
            raise BadRow(f"turn {i + 1} has the unknown role '{message['role']}': expected one of {', '.join(ROLES)}")
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            raise BadRow(f"turn {i + 1} is by '{message['role']}' where '{expected}' must speak")
    if train_on != "all" and all(m["role"] != train_on for m in messages):
        raise BadRow(f"there is no '{train_on}' turn to learn from")
