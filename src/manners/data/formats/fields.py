"""Typed access to the fields of a row, and the error for a field that does not hold what it must."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from manners.data.types import Message


class InvalidRow(Exception):
    """A row that cannot be used; the message has the field and what is wrong with it."""


def text_field(row: dict, name: str, allow_empty: bool = False) -> str:
    """A text with something in it, unless ``allow_empty``; raises InvalidRow for anything else. Raises InvalidRow."""
    value = row.get(name)
    if not isinstance(value, str):
        problem = "is missing" if name not in row else f"must be text, not {type(value).__name__}"
        raise InvalidRow(f"field '{name}' {problem}")
    if not allow_empty and not value.strip():
        raise InvalidRow(f"field '{name}' is empty")
    if re.search("[\ud800-\udfff]", value):  # JSON can write half of a character, as \ud83d; nothing can encode it
        raise InvalidRow(f"field '{name}' has half of a surrogate pair")
    return value


def list_field(row: dict, name: str) -> list:
    """A list with at least one entry; raises InvalidRow for anything else. Raises InvalidRow."""
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise InvalidRow(f"field '{name}' " + ("is missing" if name not in row else "must be a list with entries"))
    return value


def number_field(row: dict, name: str) -> float:
    """A finite number; raises InvalidRow for anything else, including true, false and a number written as text.

    Raises InvalidRow.
    """
    value = row.get(name)
    if name not in row:
        raise InvalidRow(f"field '{name}' is missing")
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # JSON may have a number of 400 digits
            number = math.inf
        if math.isfinite(number):
            return number
    shown = repr(value)[:40] if isinstance(value, str | bool | float) else type(value).__name__
    raise InvalidRow(f"field '{name}' must be a finite number, not {shown}")


def number_if_numeric(value: Any) -> Any:
    """The number in a text such as a .csv cell; any other value unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


@contextmanager
def nested_field(path: str) -> Iterator[None]:
    """Raises the body's InvalidRow with the full path of its field: 'role' becomes 'messages[2].role'."""
    try:
        yield
    except InvalidRow as error:
        raise InvalidRow(str(error).replace("field '", f"field '{path}.", 1)) from None


def parse_turn(entry: Any, path: str, role_field: str = "role", content_field: str = "content") -> Message:
    """The message in an object with a role and a content; raises InvalidRow for anything else. Raises InvalidRow."""
    if not isinstance(entry, dict):
        raise InvalidRow(f"field '{path}' must be an object with '{role_field}' and '{content_field}'")
    with nested_field(path):
        return {"role": text_field(entry, role_field), "content": text_field(entry, content_field)}


def parse_turns(row: dict, name: str, role: str) -> list[Message]:
    """The messages in a field that holds a list of them, or the text of one turn by ``role``."""
    if isinstance(row.get(name), list):
        return [parse_turn(entry, f"{name}[{i}]") for i, entry in enumerate(list_field(row, name))]
    return [{"role": role, "content": text_field(row, name)}]


def parse_marked_turns(row: dict, name: str) -> list[Message]:
    """The messages in a text with <|user|>, <|assistant|> or <|system|> before each turn.

    Raises InvalidRow for a text without markers and for an empty turn.
    """
    parts = re.split(r"<\|(system|user|assistant)\|>", text_field(row, name))
    if parts[0].strip() or len(parts) < 3:
        raise InvalidRow(f"field '{name}' must begin with <|user|> or <|system|>")
    messages = [{"role": r, "content": c.strip()} for r, c in zip(parts[1::2], parts[2::2], strict=True)]
    for message in messages:
        if not message["content"]:
            raise InvalidRow(f"field '{name}' has an empty <|{message['role']}|> turn")
    return messages
