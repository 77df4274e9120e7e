"""Rows of .csv files."""

import csv

import pytest

from manners.data import loading
from manners.data.types import preference_pairs, scored_replies
from manners.errors import MannersError
from tests.data.files import EXCHANGE, config, read, user

HINT = "Fix the row, or skip such rows: dataset.on_invalid_row=skip."


def table(folder, content, name="data.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv_rows_are_named_by_the_header(tmp_path):
    path = table(tmp_path, "prompt,reply,score,topic\n2 + 2?,4.,1,sums\n2 + 2?,5.,-0.5,sums\n")
    chats = read(path, sample_types=["scored"]).train
    assert chats[0].messages == EXCHANGE
    assert [c.metadata for c in chats] == [{"topic": "sums", "score": 1.0}, {"topic": "sums", "score": -0.5}]
    assert [(s.reply, s.score, s.source) for s in scored_replies(chats)] == [
        ("4.", 1.0, "data.csv:2"),
        ("5.", -0.5, "data.csv:3"),
    ]


def test_csv_quoted_cells_keep_commas_quotes_and_newlines(tmp_path):
    path = table(tmp_path, 'text,score\n"One, ""two""\n\nthree",1\n\n ,\nfour,2\n"five\r\nsix",3\nseven,4\n')
    chats = read(path).train
    assert [c.messages[0]["content"] for c in chats] == ['One, "two"\n\nthree', "four", "five\r\nsix", "seven"]
    assert [c.source for c in chats] == ["data.csv:2", "data.csv:7", "data.csv:8", "data.csv:10"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
def test_csv_line_ends_of_every_system_are_read(tmp_path, line_end):
    chats = read(table(tmp_path, line_end.join(["text,score", "a,1", "b,2"]))).train
    assert [(c.messages[0]["content"], c.metadata, c.source) for c in chats] == [
        ("a", {"score": 1.0}, "data.csv:2"),
        ("b", {"score": 2.0}, "data.csv:3"),
    ]


def test_csv_header_ignores_byte_order_mark_and_spaces(tmp_path):
    assert read(table(tmp_path, "\ufefftext, score \nZwei Füchse.,1\n")).train[0].metadata == {"score": 1.0}


def test_csv_empty_and_missing_cells_are_absent_fields(tmp_path):
    chats = read(table(tmp_path, "text,score,topic,split\na, ,x,\nb\n")).train
    assert [c.metadata for c in chats] == [{"topic": "x"}, {}]


def test_csv_column_without_a_name_is_ignored(tmp_path):
    """pandas writes its index like this."""
    assert read(table(tmp_path, ",text,score\n0,a,1\n1,b,2\n")).train[1].metadata == {"score": 2.0}


def test_csv_rows_may_have_pairs_and_splits(tmp_path):
    path = table(tmp_path, "prompt,chosen,rejected,margin,split\n2 + 2?,4.,5.,1.5,train\n2 + 2?,4.,6.,,dev\n")
    splits = read(path, sample_types=["preference"])
    pairs = [(p.chosen, p.rejected, p.margin) for p in preference_pairs([*splits.train, *splits.validation])]
    assert pairs == [("4.", "5.", 1.5), ("4.", "6.", 0.0)]


def test_csv_numbers_in_other_columns_stay_text(tmp_path):
    chats = read(table(tmp_path, "text,score,stars\n42,1,5\n"), score_field="stars").train
    assert chats[0].messages[0]["content"] == "42"
    assert chats[0].metadata == {"stars": 5.0, "score": 5.0}


def test_csv_cell_of_a_megabyte_is_kept(tmp_path):
    limit = csv.field_size_limit()
    try:
        reply = "yes, " * 200_000 + "end"
        assert read(table(tmp_path, f'prompt,reply\nSure?,"{reply}"\n')).train[0].messages[1]["content"] == reply
    finally:
        csv.field_size_limit(limit)


def test_eval_prompts_may_be_a_csv_file(tmp_path):
    path = table(tmp_path, 'prompt\n"One, or two?"\n', name="eval.csv")
    prompts = loading.eval_prompts(config("package:strictbot", eval_prompts_file=str(path)))
    assert [p.messages for p in prompts] == [[user("One, or two?")]]


BAD = {
    "ragged": ("b,2,more", "3 cells, but the header has 2: quote a cell that contains a comma"),
    "score": (
        "b,high",
        "field 'score' must be a finite number, not 'high' (if the field is not a score: dataset.score_field=none)",
    ),
    "decimal comma": (
        'b,"0,5"',
        "field 'score' must be a finite number, not '0,5' (if the field is not a score: dataset.score_field=none)",
    ),
    "nan": (
        "b,nan",
        "field 'score' must be a finite number, not nan (if the field is not a score: dataset.score_field=none)",
    ),
    "no text": (",2", "field 'text' is missing"),
    "quote": ('"b"c,2', "not a row of a .csv file (',' expected after '\"')"),
    "latin-1": (b"caf\xe9,2", "field 'text' is not UTF-8 (convert the file: iconv -f latin1 -t utf-8)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_csv_invalid_row_is_refused_or_skipped(tmp_path, name):
    line, expected = BAD[name]
    line = line if isinstance(line, bytes) else line.encode()
    path = table(tmp_path, b'text,score\n"a\na",1\n' + line + b"\nc,3\n")
    with pytest.raises(MannersError) as error:
        read(path)
    assert str(error.value) == f"data.csv:4: {expected}. {HINT}"
    splits = read(path, on_invalid_row="skip")
    assert splits.skipped == [f"data.csv:4: {expected}"]
    assert [c.source for c in splits.train] == ["data.csv:2", "data.csv:5"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('text,score\na,1\n"b,2\nc,3\n', 'data.csv:3: a quote (") is opened here and never closed.'),
        ("text,text\na,b\n", "data.csv:1: the header has the column 'text' twice."),
        ("prompt;reply\na;b\n", "data.csv:1: the columns are separated by ';'; save the file with commas."),
        ("prompt\treply\na\tb\n", r"data.csv:1: the columns are separated by '\t'; save the file with commas."),
        (
            b"t\xe9xt\na\n",
            "data.csv:1: the header is not UTF-8 (convert the file: iconv -f latin1 -t utf-8).",
        ),
        (
            "é\na\n".encode("latin-1"),
            "data.csv:1: the header is not UTF-8 (convert the file: iconv -f latin1 -t utf-8).",
        ),
        ('"a"b\nc\n', "data.csv:1: the header is not a row of a .csv file (',' expected after '\"')."),
    ],
    ids=["open quote", "twice", "semicolons", "tabs", "latin-1", "accent", "quote"],
)
@pytest.mark.parametrize("on_invalid_row", ["raise", "skip"])
def test_csv_file_misread_as_a_whole_is_always_refused(tmp_path, content, expected, on_invalid_row):
    with pytest.raises(MannersError) as error:
        read(table(tmp_path, content), on_invalid_row=on_invalid_row)
    assert str(error.value) == expected


@pytest.mark.parametrize("content", ["text,score\n", "\n\n"], ids=["header", "blank"])
def test_csv_without_rows_is_refused(tmp_path, content):
    with pytest.raises(MannersError, match="it has no training rows"):
        read(table(tmp_path, content))


def test_csv_unknown_columns_are_named(tmp_path):
    with pytest.raises(MannersError, match=r"data\.csv:2: no known field in \['answer', 'question'\]: expected one of"):
        read(table(tmp_path, "question,answer\na,b\n"))


@pytest.mark.parametrize("cell", ["1_000", "٣", "1,5", "0x10"])
def test_score_that_is_no_plain_number_is_refused(tmp_path, cell):
    with pytest.raises(MannersError, match="field 'score' must be a finite number"):
        read(table(tmp_path, f'prompt,completion,score\na,b,"{cell}"\n'))
