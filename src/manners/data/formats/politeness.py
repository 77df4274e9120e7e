"""The Stanford Politeness Corpus (Danescu-Niculescu-Mizil et al., ACL 2013) as its authors publish it: two .csv files.

The Wikipedia file has three quirks. Some requests have 9 or 10 annotators, and more Score and TurkId columns than the
header names. Punctuation is written as numeric entities without their semicolon, and the semicolon itself under the
colon's number: ``1&#44000&#58`` is "1,000;". And what was an entity before is escaped a second time:
``&mdash&#58`` is "&mdash;". The StackExchange file is not UTF-8 throughout.
"""

import html
import re
from statistics import fmean
from typing import Any

from manners.data.formats.fields import InvalidRow, is_empty, number_field, number_if_numeric, text_field
from manners.data.types import Message

MIN_SCORE, MAX_SCORE = 1, 25  # the annotators' scale
ENTITIES = {"44": ",", "34": '"', "58": ";"}  # the corpus's own numbers for punctuation, whatever digits follow


def column_names(annotators: int) -> list[str]:
    """The columns of a row with so many annotators."""
    numbers = range(1, annotators + 1)
    annotations = [f"{name}{n}" for name in ("Score", "TurkId") for n in numbers]
    return ["Community", "Id", "Request", *annotations, "Normalized Score"]


HEADER = column_names(5)  # that of the published files, whatever the number of annotators in a row


def is_header(header: list[str]) -> bool:
    """Whether these are the corpus's columns, for any number of annotators, perhaps padded by a spreadsheet."""
    named = [name for name in header if name]
    return len(named) >= 6 and named == column_names((len(named) - 4) // 2)


def row_by_column(cells: list[str]) -> dict[str, str]:
    """A row by column names; its width gives the number of annotators. Raises InvalidRow for an impossible width."""
    cells = [decode_bytes(cell) for cell in cells]
    while cells and not cells[-1].strip():
        cells.pop()  # a spreadsheet pads all rows to the width of the widest
    annotators, remainder = divmod(len(cells) - 4, 2)
    if remainder or annotators < 1:
        raise InvalidRow(
            f"{len(cells)} cells: expected Community, Id, Request, a Score and a TurkId of each annotator, and "
            "Normalized Score"
        )
    return dict(zip(column_names(annotators), cells, strict=True))


def parse_politeness(row: dict) -> list[Message]:
    """The request as a plain text."""
    text = text_field(row | {"Request": decode_entities(text_field(row, "Request"))}, "Request")
    return [{"role": "text", "content": text}]


def politeness_metadata(row: dict) -> dict[str, Any]:
    """``score``, the mean over all annotators from 1 to 25, and ``normalized_score``, the corpus's own value.

    Raises InvalidRow for a score that is missing, not a number or out of range.
    """
    annotated = (re.fullmatch(r"(?:Score|TurkId)(\d{1,3})", name) for name, value in row.items() if not is_empty(value))
    names = list(dict.fromkeys(f"Score{match[1]}" for match in annotated if match)) or ["Score1"]
    values = {name: number_if_numeric(row.get(name)) for name in (*names, "Normalized Score") if name in row}
    scores = [number_field(values, name) for name in names]
    for name, score in zip(names, scores, strict=True):
        if not MIN_SCORE <= score <= MAX_SCORE:
            raise InvalidRow(f"field '{name}' must be from {MIN_SCORE} to {MAX_SCORE}, not {score:g}")
    return {"score": fmean(scores), "normalized_score": number_field(values, "Normalized Score")}


def decode_entities(text: str) -> str:
    """The text without HTML entities, however often they were encoded."""
    while True:
        before = text
        text = re.sub("&#(44|34|58)(?!;)", lambda m: ENTITIES[m[1]], text)
        # Names count only with their semicolon: "&section=2" is part of a URL, not "§ion=2".
        text = re.sub(r"&#\d+;?|&#[xX][0-9a-fA-F]+;|&\w+;|&(lt|gt|amp|quot)\b", lambda m: html.unescape(m[0]), text)
        if text == before:
            return text


def decode_bytes(text: str) -> str:
    """Text whose bytes that are not UTF-8, kept as surrogates (PEP 383), are decoded as Windows-1252.

    Raises InvalidRow for a byte that is neither.
    """
    try:
        return re.sub("[\udc80-\udcff]+", lambda m: m[0].encode("utf-8", "surrogateescape").decode("cp1252"), text)
    except UnicodeDecodeError as error:
        raise InvalidRow(f"byte 0x{error.object[error.start]:02x} is neither UTF-8 nor Windows-1252") from None
