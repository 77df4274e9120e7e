"""The Stanford Politeness Corpus (Danescu-Niculescu-Mizil et al., ACL 2013) as its authors give it: two .csv files.

The Wikipedia file has three quirks. Some requests were judged by 9 or 10 annotators, and have so many more Score and
TurkId columns than the header names. Punctuation was written as numeric entities without their semicolon, and the
semicolon itself under the colon's number: ``1&#44000&#58`` is "1,000;". And what had been an entity before was
written so once more: ``&mdash&#58`` is "&mdash;". The StackExchange file is not UTF-8 throughout.
"""

import html
import re
from statistics import fmean
from typing import Any

from manners.data.formats.fields import BadRow, number_field, number_if_numeric, text_field
from manners.data.types import Message

FEWEST = 5  # annotators of a request
LEAST, MOST = 1, 25  # the ends of the annotators' scale
WRITTEN = {"44": ",", "34": '"', "58": ";"}  # how the corpus writes punctuation, whatever digits follow


def column_names(annotators: int) -> list[str]:
    numbers = range(1, annotators + 1)
    people = [f"{name}{n}" for name in ("Score", "TurkId") for n in numbers]
    return ["Community", "Id", "Request", *people, "Normalized Score"]


HEADER = column_names(FEWEST)


def row_by_column(cells: list[str]) -> dict[str, str]:
    """A row by column names, for as many annotators as its width tells."""
    annotators, odd = divmod(len(cells) - 4, 2)
    if odd or annotators < FEWEST:
        raise BadRow(
            f"{len(cells)} cells: expected Community, Id, Request, a Score and a TurkId of each annotator, and "
            "Normalized Score"
        )
    return dict(zip(column_names(annotators), cells, strict=True))


def parse_politeness(row: dict) -> list[Message]:
    text = text_field(row | {"Request": decode_entities(text_field(row, "Request"))}, "Request")
    return [{"role": "text", "content": text}]


def politeness_metadata(row: dict) -> dict[str, Any]:
    """``score``: the mean over all annotators, from 1 to 25. ``normalized_score``: the corpus's own value."""
    values = {name: number_if_numeric(value) for name, value in row.items()}
    found = [re.fullmatch(r"(?:Score|TurkId)(\d{1,3})", name) for name in row]
    annotators = max([FEWEST, *(int(match[1]) for match in found if match)])
    scores = [number_field(values, f"Score{n}") for n in range(1, annotators + 1)]
    for n, score in enumerate(scores, 1):
        if not LEAST <= score <= MOST:
            raise BadRow(f"field 'Score{n}' must be from {LEAST} to {MOST}, not {score:g}")
    return {"score": fmean(scores), "normalized_score": number_field(values, "Normalized Score")}


def decode_entities(text: str) -> str:
    """The text without entities, however often they were encoded."""
    while True:
        before = text
        text = re.sub("&#(44|34|58)(?!;)", lambda m: WRITTEN[m[1]], text)
        # Names count only with their semicolon: "&section=2" is a part of an address, not "§ion=2".
        text = re.sub(r"&#\d+;?|&#[xX][0-9a-fA-F]+;|&\w+;|&(lt|gt|amp|quot)\b", lambda m: html.unescape(m[0]), text)
        if text == before:
            return text


def decode_bytes(text: str) -> str:
    """Text in which the bytes that are no UTF-8 stand as surrogates (PEP 383), read as Windows wrote them."""
    try:
        return re.sub("[\udc80-\udcff]+", lambda m: m[0].encode("utf-8", "surrogateescape").decode("cp1252"), text)
    except UnicodeDecodeError as error:
        raise BadRow(f"byte 0x{error.object[error.start]:02x} is neither UTF-8 nor Windows-1252") from None
