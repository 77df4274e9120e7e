"""Rows of .csv files: one header row, commas, UTF-8. A quoted cell may span lines."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manners.data.formats import politeness
from manners.data.formats.fields import InvalidRow, number_if_numeric
from manners.errors import MannersError

MAX_CELL_CHARS = 2**31 - 1  # csv's own limit of 131,072 characters would reject long replies
CONVERT = "convert the file: iconv -f latin1 -t utf-8"


def csv_rows(path: Path, format: str, score_field: str) -> Iterator[tuple[str, Any]]:
    """Yield (source, row) for each row: a dict by header without its empty cells, or the InvalidRow with the reason.

    ``source`` has the line at which the row begins. Cells are text, except for the score and the margin. Raises
    MannersError for a header that would make every row wrong.
    """
    table = csv_cells(path)
    line, header = next(table, (1, []))
    if isinstance(header, InvalidRow):
        raise MannersError(f"{path.name}:{line}: the header is {header}.")
    header = [name.strip() for name in header]
    is_politeness = format in ("auto", "politeness") and header[: len(politeness.HEADER)] == politeness.HEADER
    if not is_politeness:
        check_header(header, f"{path.name}:{line}", format)
    for line, cells in table:
        try:
            if isinstance(cells, InvalidRow):
                raise cells
            row = politeness.row_by_column(cells) if is_politeness else row_by_header(cells, header)
        except InvalidRow as error:
            yield f"{path.name}:{line}", error
            continue
        row = {name: value for name, value in row.items() if name and value.strip()}
        numbers = {name: number_if_numeric(row[name]) for name in (score_field, "margin") if name in row}
        yield f"{path.name}:{line}", row | numbers


def count_csv_rows(path: Path) -> int:
    """The number of rows after the header; 0 for a file that cannot be read, since loading reports the reason."""
    try:
        return max(sum(1 for _ in csv_cells(path)) - 1, 0)
    except MannersError:
        return 0


def csv_cells(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (first line, cells or InvalidRow) for each non-blank row; bytes that are not UTF-8 become surrogates.

    Raises MannersError for a quote that is never closed.
    """
    csv.field_size_limit(MAX_CELL_CHARS)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):  # the rest of the file would become one cell and be lost
                    raise MannersError(f'{path.name}:{line}: a quote (") is opened here and never closed.') from None
                yield line, InvalidRow(f"not a row of a .csv file ({error})")
                continue
            if any(cell.strip() for cell in cells):
                yield line, cells


def check_header(header: list[str], source: str, format: str) -> None:
    """Raise MannersError for a header that is not the format's, is not UTF-8, repeats a name or lacks commas."""
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
    if len(header) == 1 and (delimiter := re.search("[;\t]", header[0])):
        raise MannersError(f"{source}: the columns are separated by {delimiter[0]!r}; save the file with commas.")


def row_by_header(cells: list[str], header: list[str]) -> dict[str, str]:
    """A row by column names. Raises InvalidRow for too many cells and for text that is not UTF-8."""
    if len(cells) > len(header):
        raise InvalidRow(f"{len(cells)} cells, but the header has {len(header)}: quote a cell that contains a comma")
    row = dict(zip(header, cells, strict=False))  # a short row lacks its last fields
    for name, value in row.items():
        if has_undecoded_bytes(value):
            raise InvalidRow(f"field '{name}' is not UTF-8 ({CONVERT})")
    return row


def has_undecoded_bytes(text: str) -> bool:
    """Whether ``text`` has surrogates for bytes that are not UTF-8 (PEP 383)."""
    return re.search("[\udc80-\udcff]", text) is not None
