"""The rows of one file: JSON Lines, JSON, plain text, tables and Arrow's formats, compressed or not."""

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from manners.data import csv_files
from manners.data.formats.fields import InvalidRow
from manners.errors import MannersError

JSON_LINES, TABLES, ARROW = (".jsonl", ".ndjson"), {".csv": ",", ".tsv": "\t"}, (".parquet", ".arrow", ".feather")
FILE_SUFFIXES = (*JSON_LINES, ".json", ".txt", *TABLES, *ARROW)
OPEN: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda path: open_zstandard(path),
}
MAGIC = {  # how such files begin
    **{b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"},
    **{b"PAR1": ".parquet", b"ARROW1": ".arrow", b"\xff\xff\xff\xff": ".arrow"},
}
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what a damaged compressed file raises


def file_kind(path: Path) -> str:
    """The suffix that says what a file holds, without that of its compression: ".jsonl" for data.JSONL.gz."""
    name = Path(path.name.lower())
    return (Path(name.stem) if name.suffix in OPEN else name).suffix


def file_rows(path: Path, name: str, format: str, score_field: str) -> Iterator[tuple[str, Any]]:
    """Yield (source, row) for each row of a file; a row that cannot be parsed comes as the InvalidRow with the reason.

    ``source`` is ``name`` with the line or row. Raises MannersError for an empty or unreadable file.
    """
    if path.stat().st_size == 0:
        raise MannersError(f"{path}: the file is empty.")
    kind = file_kind(path)
    check_beginning(path, kind)
    if kind in ARROW:
        yield from arrow_rows(path, name)
        return
    try:
        with io.BufferedReader(OPEN.get(path.suffix.lower(), io.FileIO)(path)) as file:
            if kind == ".json":
                yield from json_rows(file, path, name)
            elif kind in TABLES:
                with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
                    yield from csv_files.csv_rows(text, name, TABLES[kind], format, score_field)
            else:
                yield from line_rows(file, name, plain_text=kind == ".txt")
    except UNREADABLE as error:
        raise MannersError(f"{path}: the file cannot be read ({error}).") from None


def check_beginning(path: Path, kind: str) -> None:
    """Raise MannersError for a file whose first bytes say that it holds something else than its name says."""
    with path.open("rb") as file:
        first = file.read(6)
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise MannersError(f"{path}: the text is UTF-16; convert the file: iconv -f utf-16 -t utf-8.")
    held = next((suffix for magic, suffix in MAGIC.items() if first.startswith(magic)), None)
    if held and held not in (kind, path.suffix.lower()) and not (kind in ARROW and held in ARROW):
        name = path.name + held if held in OPEN else path.stem + held
        raise MannersError(f"{path}: the file holds {held.removeprefix('.')} data; rename it to {name}.")


def line_rows(file: IO[bytes], name: str, plain_text: bool) -> Iterator[tuple[str, Any]]:
    """Yield (source, row) for each line that is not blank."""
    for number, line in enumerate(file, 1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # a byte order mark is not text
        if line.strip():
            yield f"{name}:{number}", parse_line(line, plain_text)


def parse_line(line: bytes, plain_text: bool) -> Any:
    """The row in a line of a .jsonl or .txt file, or the InvalidRow with the reason that it has none."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return InvalidRow(f"byte {error.start + 1} is not UTF-8 (convert the file: iconv -f latin1 -t utf-8)")
    if plain_text:
        return {"text": text.rstrip("\r\n")}
    try:
        return json.loads(text, object_pairs_hook=json_object)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a bare ValueError
        return InvalidRow(f"not a JSON object on one line ({error})")


def json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError if it has a field twice, of which json would drop the first."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field '{next(n for n in names if names.count(n) > 1)}' is there twice")
    return fields


def json_rows(file: IO[bytes], path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (source, row) for each entry of a .json list. Raises MannersError if the file holds no list."""
    try:
        rows = json.loads(file.read().decode("utf-8-sig"), object_pairs_hook=json_object)
    except (ValueError, RecursionError) as error:
        raise MannersError(f"{path}: not valid JSON ({error}). For one object a line, name the file .jsonl.") from None
    if isinstance(rows, dict) and any(isinstance(value, list) for value in rows.values()):
        lists = ", ".join(name for name, value in rows.items() if isinstance(value, list))
        raise MannersError(f"{path}: it holds an object, and the rows seem to be in {lists}: save the list alone.")
    if not isinstance(rows, list):
        raise MannersError(f"{path}: a .json file must hold a list of rows. For one object a line, name it .jsonl.")
    for number, row in enumerate(rows, 1):
        yield f"{name}, row {number}", row


def arrow_rows(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (source, row) for each row of a Parquet or Arrow file. Raises MannersError."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches() if file_kind(path) == ".parquet" else ipc(path)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield f"{name}, row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise MannersError(f"{path}: the file cannot be read ({error}).") from None


def ipc(path: Path) -> Iterator[Any]:
    """Yield the record batches of an Arrow file (Feather) or stream (datasets' own)."""
    import pyarrow as pa

    try:
        reader = pa.ipc.open_file(path)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    except pa.ArrowInvalid:
        yield from pa.ipc.open_stream(path)


def open_zstandard(path: Path) -> Any:
    """A .zst file, decompressed by pyarrow: Python has no module for it before 3.14."""
    import pyarrow as pa

    return pa.input_stream(path, compression="zstd")
