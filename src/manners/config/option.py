"""An option: its default, its meaning, and the words it accepts."""

from dataclasses import field
from typing import Any


def option(default: Any, meaning: str, choices: tuple[str, ...] = ()) -> Any:
    """A config field with its one-line meaning, and the words it accepts where only some make sense."""
    extra = {"help": meaning, "choices": choices}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=extra)
    return field(default=default, metadata=extra)
