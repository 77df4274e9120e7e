"""Every kind of file, compressed or not, gives the same rows; a damaged one is refused in a sentence."""

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manners.data import sources
from manners.data.files import FILE_SUFFIXES, OPEN, file_kind
from manners.errors import MannersError
from tests.data.files import EXCHANGE, read, write

COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": lambda data: zstd(data)}


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


def table_bytes(rows, delimiter):
    out = io.StringIO(newline="")
    table = csv.DictWriter(out, ["prompt", "completion"], delimiter=delimiter)
    table.writeheader()
    table.writerows(rows)
    return out.getvalue().encode()


def arrow_bytes(rows, suffix):
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    if suffix == ".parquet":
        pa.parquet.write_table(table, sink, row_group_size=2)
    elif suffix == ".feather":
        pa.feather.write_feather(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def serialize(rows, suffix):
    """The bytes of a file that another library would write."""
    if suffix in (".csv", ".tsv"):
        return table_bytes(rows, "," if suffix == ".csv" else "\t")
    if suffix in (".parquet", ".feather", ".arrow"):
        return arrow_bytes(rows, suffix)
    if suffix == ".json":
        return json.dumps(rows).encode()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


KINDS = [suffix for suffix in FILE_SUFFIXES if suffix != ".txt"]
NAMES = [
    *KINDS,
    *(kind + zipped for kind in KINDS if kind not in (".parquet", ".arrow", ".feather") for zipped in OPEN),
]
CHARACTERS = st.characters(categories=("L", "N", "P", "S")) | st.sampled_from(' ,;\t\n"')
TEXT = st.text(CHARACTERS, max_size=12).map("a{}b".format)


def test_every_kind_and_compression_is_tested():
    assert COMPRESS.keys() == OPEN.keys()
    assert file_kind(Path("A.JSONL.GZ")) == ".jsonl"


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_same_from_every_kind_of_file(tmp_path, name):
    path = tmp_path / f"data{name}"

    @settings(max_examples=5, deadline=None)
    @given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
    def check(pairs):
        rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
        data = serialize(rows, file_kind(path))
        path.write_bytes(COMPRESS.get(path.suffix, bytes)(data))
        read_rows = [tuple(m["content"] for m in c.messages) for c in read(path).train]
        assert read_rows == pairs

    check()


def test_parquet_rows_may_have_messages_and_nulls(tmp_path):
    rows = [{"messages": EXCHANGE, "score": None, "system": None, "tools": None}, {"messages": EXCHANGE, "score": 1.0}]
    (tmp_path / "a.parquet").write_bytes(arrow_bytes(rows, ".parquet"))
    splits = read(tmp_path / "a.parquet")
    assert [(c.messages, c.metadata) for c in splits.train] == [(EXCHANGE, {}), (EXCHANGE, {"score": 1.0})]
    assert splits.train[1].source == "a.parquet, row 2"
    assert splits.left_out == []


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.bz2", "a.json.xz", "a.jsonl.zst", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"no such file " + data], ids=["cut", "other"])
def test_damaged_file_is_refused_in_a_sentence(tmp_path, name, damage):
    path = tmp_path / name
    data = serialize([{"prompt": f"{i}?", "completion": "Yes."} for i in range(9)], file_kind(path))
    path.write_bytes(damage(COMPRESS.get(path.suffix, bytes)(data)))
    with pytest.raises(MannersError) as error:
        read(path, on_invalid_row="skip")
    assert str(error.value).startswith(f"{path}: the file cannot be read (")


@pytest.mark.parametrize("name", ["book.xlsx", "data.zip", "data.pkl.gz", "notes.docx"])
def test_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(MannersError, match=rf"{name}: \.\w+ files cannot be read. Known: .jsonl, .*\.parquet"):
        read(tmp_path / name)


@pytest.mark.parametrize("suffix", [*OPEN, ".parquet", ".arrow"])
def test_file_of_another_kind_than_its_name_is_refused(tmp_path, suffix):
    content = arrow_bytes([{"text": "a"}], suffix) if suffix in (".parquet", ".arrow") else COMPRESS[suffix](b"{}")
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(MannersError) as error:
        read(tmp_path / "rows.jsonl")
    name = f"rows.jsonl{suffix}" if suffix in OPEN else f"rows{suffix}"
    assert str(error.value).endswith(f"the file holds {suffix[1:]} data; rename it to {name}.")
    (tmp_path / "rows.jsonl").rename(tmp_path / name)
    sources.data_files(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_refused_with_the_command_that_converts(tmp_path, name, encoding):
    text = "text\nHallo\n" if encoding == "utf-16" else "\ufefftext\nHallo\n"
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(MannersError, match=r"the text is UTF-16; convert the file: iconv -f utf-16 -t utf-8"):
        read(tmp_path / name)


def test_null_fields_are_as_if_missing(tmp_path):
    """A table of several datasets has the fields of all of them."""
    row = {"prompt": "2 + 2?", "completion": "4.", "messages": None, "chosen": None, "text": None}
    splits = read(write(tmp_path, row, row | {"completion": None, "response": "4."}))
    assert [c.messages for c in splits.train] == [EXCHANGE, EXCHANGE]


def test_tsv_cells_may_hold_commas_and_its_header_needs_tabs(tmp_path):
    (tmp_path / "a.tsv").write_text("prompt\tcompletion\n2, or 3?\t4.\n")
    assert read(tmp_path / "a.tsv").train[0].messages[0]["content"] == "2, or 3?"
    (tmp_path / "b.tsv").write_text("prompt,completion\na,b\n")
    with pytest.raises(MannersError, match="separated by ','; save the file with tabs"):
        read(tmp_path / "b.tsv")
    (tmp_path / "c.tsv").write_text("prompt\tcompletion\na\tb\tc\n")
    with pytest.raises(MannersError, match="3 cells, but the header has 2: quote a cell that contains a tab"):
        read(tmp_path / "c.tsv")


def test_folder_of_several_kinds_is_read_and_the_rest_named(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "hidden.jsonl").write_text("no json")
    write(tmp_path, {"messages": EXCHANGE}, name="a.jsonl")
    (tmp_path / "b.parquet").write_bytes(arrow_bytes([{"messages": EXCHANGE}] * 2, ".parquet"))
    (tmp_path / "more" / "c.json").write_text(json.dumps([{"messages": EXCHANGE}] * 3))
    for name in ("notes.docx", "more/state.json"):
        (tmp_path / name).write_text("{}")
    splits = read(tmp_path)
    assert [c.source for c in splits.train] == [
        "a.jsonl:1",
        *("b.parquet, row 1", "b.parquet, row 2"),
        *(f"more/c.json, row {i}" for i in (1, 2, 3)),
    ]
    assert splits.left_out == ["left out: files of the folder: more/state.json, notes.docx"]
