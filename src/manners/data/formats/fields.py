"""The fields of a row, one by one: what they must hold, and what is said of them where they do not."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from manners.data.types import Message


class BadRow(Exception):
    """Why a row cannot be used: the field, and what is wrong with it."""


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


def number_field(row: dict, name: str) -> float:
    """A finite number. True and False are none, though Python counts with them, nor is a number written as text."""
    value = row.get(name)
    if name not in row:
        raise BadRow(f"field '{name}' is missing")
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # JSON may write a number of 400 digits
            number = math.inf
        if math.isfinite(number):
            return number
    shown = repr(value)[:40] if isinstance(value, str | bool | float) else type(value).__name__
    raise BadRow(f"field '{name}' must be a finite number, not {shown}")


def number_if_numeric(value: Any) -> Any:
    """A number that stands as text, as in a .csv file; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


@contextmanager
def nested_field(at: str) -> Iterator[None]:
    """Fields named in a BadRow are those of the entry ``at``: 'role' becomes 'messages[2].role'."""
    try:
        yield
    except BadRow as bad:
        raise BadRow(str(bad).replace("field '", f"field '{at}.", 1)) from None


def parse_turn(entry: Any, at: str, role: str = "role", content: str = "content") -> Message:
    if not isinstance(entry, dict):
        raise BadRow(f"field '{at}' must be an object with '{role}' and '{content}'")
    with nested_field(at):
        return {"role": text_field(entry, role), "content": text_field(entry, content)}


def parse_turns(row: dict, name: str, role: str) -> list[Message]:
    """A field that holds a list of messages, or the words of one turn by ``role``."""
    if isinstance(row.get(name), list):
        return [parse_turn(entry, f"{name}[{i}]") for i, entry in enumerate(list_field(row, name))]
    return [{"role": role, "content": text_field(row, name)}]


def parse_marked_turns(row: dict, name: str) -> list[Message]:
    """A field of text in which <|user|>, <|assistant|> and <|system|> stand before their turns."""
    parts = re.split(r"<\|(system|user|assistant)\|>", text_field(row, name))
    if parts[0].strip() or len(parts) < 3:
        raise BadRow(f"field '{name}' must begin with <|user|> or <|system|>")
    found = [{"role": r, "content": c.strip()} for r, c in zip(parts[1::2], parts[2::2], strict=True)]
    for message in found:
        if not message["content"]:
            raise BadRow(f"field '{name}' has an empty <|{message['role']}|> turn")
    return found
