"""Rows of .csv and .tsv files: one header row, commas or tabs, UTF-8. A quoted cell may span lines."""

import csv
import re
from collections.abc import Iterator
from typing import Any, TextIO

from manners.data.formats import politeness
from manners.data.formats.fields import InvalidRow, number_if_numeric
from manners.errors import MannersError

MAX_CELL_CHARS = 2**31 - 1  # csv's own limit of 131,072 characters would reject long replies
SEPARATORS = {",": ("comma", "csv"), "\t": ("tab", "tsv")}
CONVERT = "convert the file: iconv -f latin1 -t utf-8"


def csv_rows(file: TextIO, name: str, delimiter: str, format: str, score_field: str) -> Iterator[tuple[str, Any]]:
    """Yield (source, row) for each row: a dict by header without its empty cells, or the InvalidRow with the reason.

    ``file`` is opened with surrogates for bytes that are not UTF-8. ``source`` has ``name`` and the line at which the
    row begins. Cells are text, except for the score and the margin. Raises MannersError for a header that would make
    every row wrong.
    """
    table = csv_cells(file, name, delimiter)
    line, header = next(table, (1, []))
    if isinstance(header, InvalidRow):
        raise MannersError(f"{name}:{line}: the header is {header}.")
    header = [column.strip() for column in header]
    is_politeness = format in ("auto", "politeness") and politeness.is_header(header)
    if not is_politeness:
        check_header(header, f"{name}:{line}", format, delimiter)
    for line, cells in table:
        try:
            if isinstance(cells, InvalidRow):
                raise cells
            row = politeness.row_by_column(cells) if is_politeness else row_by_header(cells, header, delimiter)
        except InvalidRow as error:
            yield f"{name}:{line}", error
            continue
        row = {column: value for column, value in row.items() if column and value.strip()}
        numbers = {column: number_if_numeric(row[column]) for column in (score_field, "margin") if column in row}
        yield f"{name}:{line}", row | numbers


def csv_cells(file: TextIO, name: str, delimiter: str) -> Iterator[tuple[int, Any]]:
    """Yield (first line, cells or InvalidRow) for each non-blank row. Raises MannersError for a quote left open."""
    csv.field_size_limit(MAX_CELL_CHARS)
    reader = csv.reader(file, strict=True, delimiter=delimiter)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):  # the rest of the file would become one cell and be lost
                raise MannersError(f'{name}:{line}: a quote (") is opened here and never closed.') from None
            yield line, InvalidRow(f"not a row of a .{SEPARATORS[delimiter][1]} file ({error})")
            continue
        if any(cell.strip() for cell in cells):
            yield line, cells


def check_header(header: list[str], source: str, format: str, delimiter: str) -> None:
    """Raise MannersError for a header that is not the format's, is not UTF-8, repeats a name or is not separated."""
    if format == "politeness":
        raise MannersError(
            f"{source}: these are not the columns of the Stanford Politeness Corpus, which begin with "
            f"{', '.join(politeness.HEADER[:4])}. For other files: dataset.format=auto."
        )
    if any(map(has_undecoded_bytes, header)):
        raise MannersError(f"{source}: the header is not UTF-8 ({CONVERT}).")
    duplicates = [name for i, name in enumerate(header) if name and name in header[:i]]
    if duplicates:
        raise MannersError(f"{source}: the header has the column '{duplicates[0]}' twice.")
    if len(header) == 1 and (other := re.search("[;,\t]", header[0])):
        separator = SEPARATORS[delimiter][0]
        raise MannersError(f"{source}: the columns are separated by {other[0]!r}; save the file with {separator}s.")


def row_by_header(cells: list[str], header: list[str], delimiter: str) -> dict[str, str]:
    """A row by column names. Raises InvalidRow for too many cells and for text that is not UTF-8."""
    if len(cells) > len(header):
        separator = SEPARATORS[delimiter][0]
        raise InvalidRow(
            f"{len(cells)} cells, but the header has {len(header)}: quote a cell that contains a {separator}"
        )
    row = dict(zip(header, cells, strict=False))  # a short row lacks its last fields
    for name, value in row.items():
        if has_undecoded_bytes(value):
            raise InvalidRow(f"field '{name}' is not UTF-8 ({CONVERT})")
    return row


def has_undecoded_bytes(text: str) -> bool:
    """Whether ``text`` has surrogates for bytes that are not UTF-8 (PEP 383)."""
    return re.search("[\udc80-\udcff]", text) is not None
