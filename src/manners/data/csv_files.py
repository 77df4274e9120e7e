"""Rows of .csv files: one header row, commas, UTF-8. A quoted cell may span lines."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manners.data.formats import politeness
from manners.data.formats.fields import BadRow, number_if_numeric
from manners.errors import MannersError

MAX_CELL_CHARS = 2**31 - 1  # characters of a cell; csv's own limit of 131,072 would refuse long replies
CONVERT = "convert the file: iconv -f latin1 -t utf-8"


def csv_rows(path: Path, format: str, score_field: str) -> Iterator[tuple[str, Any]]:
    """(where, row) for each row: a dict by header, without its empty cells, or the BadRow that says why not.

    ``where`` has the line at which the row begins. Cells are text, but for the score and the margin.
    """
    table = csv_cells(path)
    line, header = next(table, (1, []))
    if isinstance(header, BadRow):
        raise MannersError(f"{path.name}:{line}: the header is {header}.")
    header = [name.strip() for name in header]
    corpus = format in ("auto", "politeness") and header[: len(politeness.HEADER)] == politeness.HEADER
    if not corpus:
        check_header(header, f"{path.name}:{line}", format)
    for line, found in table:
        try:
            if isinstance(found, BadRow):
                raise found
            row = politeness_row(found) if corpus else plain_row(found, header)
        except BadRow as bad:
            yield f"{path.name}:{line}", bad
            continue
        row = {name: value for name, value in row.items() if name and value.strip()}
        numbers = {name: number_if_numeric(row[name]) for name in (score_field, "margin") if name in row}
        yield f"{path.name}:{line}", row | numbers


def count_csv_rows(path: Path) -> int:
    """The rows after the header; none where the file cannot be read, of which the reader says why."""
    try:
        return max(sum(1 for _ in csv_cells(path)) - 1, 0)
    except MannersError:
        return 0


def csv_cells(path: Path) -> Iterator[tuple[int, Any]]:
    """(line at which it begins, cells) for each row with something in it; bytes that are no UTF-8 as surrogates."""
    csv.field_size_limit(MAX_CELL_CHARS)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                found = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):  # all that follows would be one cell, and lost
                    raise MannersError(f'{path.name}:{line}: a quote (") is opened here and never closed.') from None
                yield line, BadRow(f"no row of a .csv file ({error})")
                continue
            if any(cell.strip() for cell in found):
                yield line, found


def check_header(header: list[str], where: str, format: str) -> None:
    if format == "politeness":
        raise MannersError(
            f"{where}: these are not the columns of the Stanford Politeness Corpus, which begin with "
            f"{', '.join(politeness.HEADER[:4])}. For other files: dataset.format=auto."
        )
    if any(map(not_utf8, header)):
        raise MannersError(f"{where}: the header is not UTF-8 ({CONVERT}).")
    twice = [name for i, name in enumerate(header) if name and name in header[:i]]
    if twice:
        raise MannersError(f"{where}: the header names '{twice[0]}' twice.")
    if len(header) == 1 and (other := re.search("[;\t]", header[0])):
        raise MannersError(f"{where}: the columns stand between {other[0]!r}; save the file with commas.")


def plain_row(found: list[str], header: list[str]) -> dict[str, str]:
    if len(found) > len(header):
        raise BadRow(f"{len(found)} cells, and the header names {len(header)}: quote a cell that holds a comma")
    row = dict(zip(header, found, strict=False))  # a short row lacks its last fields
    for name, value in row.items():
        if not_utf8(value):
            raise BadRow(f"field '{name}' is not UTF-8 ({CONVERT})")
    return row


def politeness_row(found: list[str]) -> dict[str, str]:
    found = [politeness.decode_bytes(cell) for cell in found]
    while len(found) > len(politeness.HEADER) and not found[-1].strip():
        found.pop()  # a spreadsheet writes all rows as wide as the widest
    return politeness.row_by_column(found)


def not_utf8(text: str) -> bool:
    return re.search("[\udc80-\udcff]", text) is not None
