"""Rows and files that cannot be used: refused with file, line and field, or counted and left out."""

import pytest

from manners.data.tokenize import TokenizedExample
from manners.errors import MannersError
from tests.data.files import ASKED, FORMATS, SYSTEM, assistant, read, user, write

# --- Bad rows: (format, the row or line, what is said of it) ---

BAD = {
    "no assistant turn": ("messages", {"messages": [user("Hi")]}, "there is no 'assistant' turn to learn from"),
    "only a system message": ("messages", {"messages": [SYSTEM]}, "there is no 'assistant' turn to learn from"),
    "wrong order": ("messages", {"messages": ASKED[::-1]}, "turn 1 is by 'assistant' where 'user' must speak"),
    "twice the same": (
        "messages",
        {"messages": [user("a"), user("b"), assistant("c")]},
        "turn 2 is by 'user' where 'assistant' must speak",
    ),
    "late system": (
        "messages",
        {"messages": [*ASKED, SYSTEM]},
        "turn 3 is by 'system' where 'user' must speak",
    ),
    "unknown role": (
        "messages",
        {"messages": [user("a"), {"role": "narrator", "content": "b"}]},
        "turn 2 has the unknown role 'narrator': expected one of system, user, assistant",
    ),
    # "text" is what a Chat calls plain text: a row must not pass for it, or its other turns would be lost.
    "role text": (
        "messages",
        {"messages": [{"role": "text", "content": "a"}, *ASKED]},
        "turn 1 has the unknown role 'text': expected one of system, user, assistant",
    ),
    "empty reply": ("messages", {"messages": [user("a"), assistant(" \n")]}, "field 'messages[1].content' is empty"),
    "number for text": (
        "messages",
        {"messages": [user("a"), assistant(42)]},
        "field 'messages[1].content' must be text, not int",
    ),
    "null for text": (
        "messages",
        {"messages": [user(None), assistant("a")]},
        "field 'messages[0].content' must be text, not NoneType",
    ),
    "no role": ("messages", {"messages": [{"content": "a"}]}, "field 'messages[0].role' is missing"),
    "text for a turn": (
        "messages",
        {"messages": ["a"]},
        "field 'messages[0]' must be an object with 'role' and 'content'",
    ),
    "empty list": ("messages", {"messages": []}, "field 'messages' must be a list with entries"),
    "object for a list": ("messages", {"messages": user("a")}, "field 'messages' must be a list with entries"),
    "field missing": ("messages", {"message": ASKED}, "field 'messages' is missing"),
    "half a character": (
        "messages",
        {"messages": [user("a"), assistant("\ud83d")]},  # json.dumps writes "\\ud83d", as broken exporters do
        "field 'messages[1].content' has half of a surrogate pair",
    ),
    "a list for a row": ("messages", ASKED, "a row must be a JSON object, not list"),
    "a number for a row": ("messages", 7, "a row must be a JSON object, not int"),
    "no completion": ("prompt_completion", {"prompt": "a"}, "field 'completion' is missing"),
    "empty completion": ("prompt_completion", {"prompt": "a", "completion": ""}, "field 'completion' is empty"),
    "number completion": (
        "prompt_completion",
        {"prompt": "a", "completion": 1.5},
        "field 'completion' must be text, not float",
    ),
    "empty lists": (
        "prompt_completion",
        {"prompt": [], "completion": []},
        "field 'prompt' must be a list with entries",
    ),
    "unmarked": ("marked", {"text": "Hi <|assistant|>there"}, "field 'text' must begin with <|user|> or <|system|>"),
    "no marker": ("marked", {"text": "Hi there"}, "field 'text' must begin with <|user|> or <|system|>"),
    "empty marked reply": (
        "marked",
        {"text": "<|user|>Hi<|assistant|> "},
        "field 'text' has an empty <|assistant|> turn",
    ),
    "sharegpt role": (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "tool", "value": "b"}]},
        "turn 2 has the unknown role 'tool': expected one of system, user, assistant",
    ),
    "sharegpt number": (
        "sharegpt",
        {"conversations": [{"from": "human", "value": 5}]},
        "field 'conversations[0].value' must be text, not int",
    ),
    "alpaca input": (
        "alpaca",
        {"instruction": "a", "input": 5, "output": "b"},
        "field 'input' must be text, not int",
    ),
    "alpaca output": ("alpaca", {"instruction": "a", "output": "\t"}, "field 'output' is empty"),
    "alpaca instruction": ("alpaca", {"output": "b"}, "field 'instruction' is missing"),
    "text number": ("text", {"text": 3}, "field 'text' must be text, not int"),
}  # fmt: skip


@pytest.mark.parametrize("told", [True, False], ids=["told", "auto"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_refused_with_file_line_and_field(tmp_path, name, told):
    kind, row, says = BAD[name]
    good = FORMATS[kind][0][0]
    path = write(tmp_path, good, row, good)
    with pytest.raises(MannersError) as refused:
        read(path, format=kind if told else "auto")
    advice = "Mend the row, or leave such rows out: dataset.on_invalid_row=skip."
    other = f" If it is no {kind} file: dataset.format=auto." if told else ""  # it may be the format that is wrong
    assert str(refused.value) == f"data.jsonl:2: {says}. {advice}{other}"


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_left_out_and_reported_when_asked(tmp_path, name):
    kind, row, says = BAD[name]
    good = FORMATS[kind][0][0]
    splits = read(write(tmp_path, good, row, good), on_invalid_row="skip")
    assert splits.skipped == [f"data.jsonl:2: {says}"]
    assert [c.source for c in splits.train] == ["data.jsonl:1", "data.jsonl:3"]


LINES = {
    "cut short": ('{"messages": [', "not a JSON object on one line (Expecting value"),
    "csv": ("prompt,completion", "not a JSON object on one line (Expecting value"),
    "two objects": ('{"text": "a"} {"text": "b"}', "not a JSON object on one line (Extra data"),
    "deeply nested": ('{"text": ' + "[" * 100_000, "not a JSON object on one line (maximum recursion depth exceeded"),
    "a number of 5,000 digits": ('{"text": ' + "9" * 5000 + "}", "not a JSON object on one line (Exceeds the limit"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_is_no_json_is_refused_with_its_number_and_can_be_left_out(tmp_path, name):
    line, says = LINES[name]
    path = write(tmp_path, {"text": "good"}, line)
    with pytest.raises(MannersError) as refused:
        read(path)
    assert str(refused.value).startswith(f"data.jsonl:2: {says}")
    splits = read(path, on_invalid_row="skip")
    assert len(splits.train) == len(splits.skipped) == 1
    assert splits.skipped[0].startswith(f"data.jsonl:2: {says}")


@pytest.mark.parametrize("name", ["data.jsonl", "data.txt"])
def test_a_line_that_is_not_utf8_is_refused_with_the_byte(tmp_path, name):
    good, bad = b'{"text": "good"}\n', b'{"text": "caf\xe9"}\n'  # Latin-1: the é is byte 14 of its line
    (tmp_path / name).write_bytes(good + bad)
    says = f"{name}:2: byte 14 is not UTF-8"
    with pytest.raises(MannersError, match=says):
        read(tmp_path / name)
    splits = read(tmp_path / name, on_invalid_row="skip")
    assert len(splits.train) == 1
    assert splits.skipped[0].startswith(says)


@pytest.mark.parametrize("name", ["picture.jsonl", "picture.txt"])
@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "{}".encode("utf-16")], ids=["png", "utf-16"])
def test_a_binary_file_is_refused_at_its_first_byte(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MannersError, match=rf"{name}:1: byte 1 is not UTF-8"):
        read(tmp_path / name)


@pytest.mark.parametrize("options", [{}, {"on_invalid_row": "skip"}], ids=["raise", "skip"])
@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.txt", "data.csv"])
def test_an_empty_file_is_refused_whatever_on_error_says(tmp_path, name, options):
    (tmp_path / name).touch()
    with pytest.raises(MannersError, match=rf"{name}: the file is empty"):
        read(tmp_path / name, **options)


def test_a_file_of_blank_lines_has_no_rows(tmp_path):
    with pytest.raises(MannersError, match="it has no training rows"):
        read(write(tmp_path, "", "  ", ""))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"text": "a"}\n{"text": "b"}\n', "not valid JSON (Extra data"),
        (b'["caf\xe9"]', "not valid JSON ('utf-8' codec can't decode byte 0xe9"),
        (b"[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
        (b'{"rows": []}', "a .json file must hold a list of rows"),
        (b"[]", "it has no training rows"),
    ],
    ids=["lines", "latin-1", "deep", "object", "empty list"],
)
def test_a_json_file_that_holds_no_list_of_rows_is_refused(tmp_path, content, says):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(MannersError) as refused:
        read(path)
    assert f"{path}: {says}" in str(refused.value)


def test_an_unknown_format_names_the_fields_found_and_expected(tmp_path):
    with pytest.raises(
        MannersError, match=r"data.jsonl:1: no known field in \['answer', 'question'\]: expected one of "
    ):
        read(write(tmp_path, {"question": "a", "answer": "b"}))


def test_skipped_rows_are_counted_in_the_report(tmp_path):
    from manners.pipeline.preview import token_counts

    splits = read(write(tmp_path, {"text": "a"}, {"text": ""}, {"text": "b"}, {"text": 3}), on_invalid_row="skip")
    assert len(splits.train) == len(splits.skipped) == 2
    line = token_counts(splits, [TokenizedExample([1, 2], [1, 2])] * 2)[-1]
    assert line == "left out (dataset.on_invalid_row=skip): 2 rows, the first: data.jsonl:2: field 'text' is empty"


def test_nothing_but_bad_rows_is_refused_even_when_they_may_be_left_out(tmp_path):
    path = write(tmp_path, {"text": ""}, {"text": 3}, "no json")
    with pytest.raises(MannersError) as refused:
        read(path, on_invalid_row="skip")
    assert str(refused.value) == (
        f"dataset.path={path}: all 3 rows were malformed. The first: data.jsonl:1: field 'text' is empty."
    )


def test_rows_without_the_role_that_is_trained_are_refused(tmp_path):
    path = write(tmp_path, {"messages": ASKED})
    with pytest.raises(MannersError, match=r"data\.jsonl:1: there is no 'system' turn to learn from"):
        read(path, loss_roles="system")
    assert len(read(path, loss_roles="user").train) == 1
    asked_only = write(tmp_path, {"messages": [user("Hi")]})
    assert len(read(asked_only, loss_roles="all").train) == 1
