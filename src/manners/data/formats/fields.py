"""Typed access to the fields of a row, and the error for a field that does not hold what it must."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NUMBER = re.compile(r"[-+]?((\d+\.?\d*|\.\d+)(e[-+]?\d+)?|nan|inf)", re.ASCII | re.IGNORECASE)  # float takes 1_000


class InvalidRow(Exception):
    """A row that cannot be used; the message has the field and what is wrong with it."""


class Row(dict):
    """A row that remembers which of its fields were read, so that the others can be named."""

    def __init__(self, fields: dict[str, Any]):
        super().__init__(fields)
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


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
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value.strip()) else value


def is_empty(value: Any) -> bool:
    """Whether a field holds nothing: null, or a blank text, an empty list or an empty object."""
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())


@contextmanager
def nested_field(path: str) -> Iterator[None]:
    """Raises the body's InvalidRow with the full path of its field: 'role' becomes 'messages[2].role'."""
    try:
        yield
    except InvalidRow as error:
        raise InvalidRow(str(error).replace("field '", f"field '{path}.", 1)) from None
