"""The registry of dataset formats, ``FORMATS``: only this package knows the column names of a dataset.

To add a format: write its parser, which turns a row into messages or raises InvalidRow; add it to ``FORMATS``, to
``detect_row_format`` and to the choices of ``dataset.format`` in ``config/schema``. OpenAssistant's message trees and
people's votes are not parsed row by row and have modules of their own, ``oasst`` and ``votes``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from manners.data.formats import oasst, votes
from manners.data.formats.columns import suggest_columns
from manners.data.formats.conversations import (
    COMPLETION_FIELDS,
    parse_alpaca,
    parse_chatml,
    parse_dolly,
    parse_guanaco,
    parse_hh,
    parse_marked,
    parse_messages,
    parse_prompt_completion,
    parse_sharegpt,
    parse_text,
)
from manners.data.formats.fields import InvalidRow
from manners.data.formats.politeness import parse_politeness, politeness_metadata
from manners.data.formats.preference import parse_preference, preference_metadata
from manners.data.formats.turns import text_format
from manners.data.types import Message


@dataclass(frozen=True)
class Format:
    parse: Callable[[dict[str, Any]], list[Message]]  # a row's conversation; raises InvalidRow
    plain_text: bool = False  # its rows have no roles
    metadata: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # what only this format adds to the metadata


FORMATS: dict[str, Format] = {
    "messages": Format(parse_messages),
    "prompt_completion": Format(parse_prompt_completion),
    "marked": Format(parse_marked),
    "sharegpt": Format(parse_sharegpt),
    "alpaca": Format(parse_alpaca),
    "dolly": Format(parse_dolly),
    "guanaco": Format(parse_guanaco),
    "hh": Format(parse_hh),
    "chatml": Format(parse_chatml),
    "text": Format(parse_text, plain_text=True),
    "preference": Format(parse_preference, metadata=preference_metadata),
    "politeness": Format(parse_politeness, plain_text=True, metadata=politeness_metadata),
}
PLAIN_TEXT_FORMATS = tuple(name for name, format in FORMATS.items() if format.plain_text)

# Checked in this order. A chosen reply comes first, since UltraFeedback's rows have the better conversation as
# ``messages`` too; ``text`` is not among them, since Alpaca's rows have their rendered text in it too.
FORMAT_OF_FIELD = {
    "chosen": "preference",
    "messages": "messages",
    "conversations": "sharegpt",
    "completion": "prompt_completion",
    "Normalized Score": "politeness",
}
KNOWN_FIELDS = "messages, conversations, prompt, completion, instruction, input, output, text, chosen"


def detect_row_format(row: dict[str, Any]) -> str:
    """The format of a row, by its fields. Raises InvalidRow if they show none."""
    for field, name in FORMAT_OF_FIELD.items():
        if field in row:
            if name == "prompt_completion" and not {"prompt", "instruction"} & row.keys():
                raise InvalidRow(f"field 'prompt' is missing{suggest_columns(row)}")
            return name
    if oasst.is_oasst_row(row):
        return "oasst"
    if row.keys() >= votes.VOTE_FIELDS:
        return "votes"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "prompt" in row and any(name in row for name in COMPLETION_FIELDS):
        return "prompt_completion"
    if "instruction" in row and "response" in row:
        return "dolly"
    if "text" in row:
        return text_format(row["text"])
    for name, reply in (("prompt", "completion"), ("instruction", "output")):
        if name in row:
            raise InvalidRow(f"field '{reply}' is missing{suggest_columns(row)}")
    raise InvalidRow(f"no known field in {sorted(row)[:8]}: expected one of {KNOWN_FIELDS}{suggest_columns(row)}")
