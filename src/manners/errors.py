"""The one error that a user is meant to read: what is wrong, and what to type next."""

import difflib
from collections.abc import Iterable

from manners.redact import redact_secrets


class MannersError(Exception):
    """Shown as its message alone, without a traceback. ``key`` is the option at fault, where it is one."""

    def __init__(self, message: str, key: str = ""):
        super().__init__(printable(redact_secrets(message)))
        self.key = key


class Pruned(Exception):
    """A search has given this job up: no failure, and nothing to read."""


def printable(text: str) -> str:
    """What came from outside, made fit for a terminal: its controls, and halves of characters, stand as their codes."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?", or the known names where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(names)}."
