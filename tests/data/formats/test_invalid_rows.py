"""Rows and files that cannot be used: refused with file, line and field, or counted and skipped."""

import pytest

from manners.data.tokenize import TokenizedExample
from manners.errors import MannersError
from tests.data.files import EXCHANGE, FORMATS, SYSTEM, assistant, read, user, write

# --- Invalid rows: (format, row or line, expected message) ---

BAD = {
    "no assistant turn": ("messages", {"messages": [user("Hi")]}, "there is no 'assistant' turn to train on"),
    "only a system message": ("messages", {"messages": [SYSTEM]}, "there is no 'assistant' turn to train on"),
    "wrong order": ("messages", {"messages": EXCHANGE[::-1]}, "turn 1 has the role 'assistant': expected 'user'"),
    "twice the same": (
        "messages",
        {"messages": [user("a"), user("b"), assistant("c")]},
        "turn 2 has the role 'user' like the turn before it (dataset.merge_turns=true joins them)",
    ),
    "late system": (
        "messages",
        {"messages": [*EXCHANGE, SYSTEM]},
        "turn 3 has the role 'system': expected 'user'",
    ),
    "unknown role": (
        "messages",
        {"messages": [user("a"), {"role": "narrator", "content": "b"}]},
        "turn 2 has the unknown role 'narrator': expected one of system, user, assistant",
    ),
    # The role "text" marks plain text: a row that used it would lose its other turns.
    "role text": (
        "messages",
        {"messages": [{"role": "text", "content": "a"}, *EXCHANGE]},
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
    "field missing": ("messages", {"message": EXCHANGE}, "field 'messages' is missing"),
    "half a character": (
        "messages",
        {"messages": [user("a"), assistant("\ud83d")]},  # json.dumps writes "\\ud83d", as broken exporters do
        "field 'messages[1].content' has half of a surrogate pair",
    ),
    "a list for a row": ("messages", EXCHANGE, "a row must be a JSON object, not list"),
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
        "turn 2 of field 'text' is empty",
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
        "field 'input' must be text, not int ('dataset.columns={input: null}' leaves it out)",
    ),
    "alpaca output": ("alpaca", {"instruction": "a", "output": "\t"}, "field 'output' is empty"),
    "alpaca instruction": ("alpaca", {"output": "b"}, "field 'instruction' is missing"),
    "text number": ("text", {"text": 3}, "field 'text' must be text, not int"),
}  # fmt: skip


@pytest.mark.parametrize("given", [True, False], ids=["given", "auto"])
@pytest.mark.parametrize("name", BAD)
def test_invalid_row_is_refused_with_file_line_and_field(tmp_path, name, given):
    kind, row, expected = BAD[name]
    good = FORMATS[kind][0][0]
    path = write(tmp_path, good, row, good)
    with pytest.raises(MannersError) as error:
        read(path, format=kind if given else "auto")
    hint = "Fix the row, or skip such rows: dataset.on_invalid_row=skip."
    format_hint = (
        f" If the file is not in the {kind} format: dataset.format=auto." if given else ""
    )  # the format may be wrong
    assert str(error.value) == f"data.jsonl:2: {expected}. {hint}{format_hint}"


@pytest.mark.parametrize("name", BAD)
def test_invalid_row_is_skipped_and_reported_if_configured(tmp_path, name):
    kind, row, expected = BAD[name]
    good = FORMATS[kind][0][0]
    splits = read(write(tmp_path, good, row, good), on_invalid_row="skip")
    assert splits.skipped == [f"data.jsonl:2: {expected}"]
    assert [c.source for c in splits.train] == ["data.jsonl:1", "data.jsonl:3"]


LINES = {
    "cut short": ('{"messages": [', "not a JSON object on one line (Expecting value"),
    "csv": ("prompt,completion", "not a JSON object on one line (Expecting value"),
    "two objects": ('{"text": "a"} {"text": "b"}', "not a JSON object on one line (Extra data"),
    "deeply nested": ('{"text": ' + "[" * 100_000, "not a JSON object on one line (maximum recursion depth exceeded"),
    "a number of 5,000 digits": ('{"text": ' + "9" * 5000 + "}", "not a JSON object on one line (Exceeds the limit"),
}


@pytest.mark.parametrize("name", LINES)
def test_line_that_is_not_json_is_refused_or_skipped(tmp_path, name):
    line, expected = LINES[name]
    path = write(tmp_path, {"text": "good"}, line)
    with pytest.raises(MannersError) as error:
        read(path)
    assert str(error.value).startswith(f"data.jsonl:2: {expected}")
    splits = read(path, on_invalid_row="skip")
    assert len(splits.train) == len(splits.skipped) == 1
    assert splits.skipped[0].startswith(f"data.jsonl:2: {expected}")


@pytest.mark.parametrize("name", ["data.jsonl", "data.txt"])
def test_line_that_is_not_utf8_is_refused_with_the_byte(tmp_path, name):
    good, bad = b'{"text": "good"}\n', b'{"text": "caf\xe9"}\n'  # Latin-1: the é is byte 14 of its line
    (tmp_path / name).write_bytes(good + bad)
    expected = f"{name}:2: byte 14 is not UTF-8"
    with pytest.raises(MannersError, match=expected):
        read(tmp_path / name)
    splits = read(tmp_path / name, on_invalid_row="skip")
    assert len(splits.train) == 1
    assert splits.skipped[0].startswith(expected)


@pytest.mark.parametrize("name", ["picture.jsonl", "picture.txt"])
def test_binary_file_is_refused_at_its_first_byte(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    with pytest.raises(MannersError, match=rf"{name}:1: byte 1 is not UTF-8"):
        read(tmp_path / name)


@pytest.mark.parametrize("options", [{}, {"on_invalid_row": "skip"}], ids=["raise", "skip"])
@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.txt", "data.csv"])
def test_empty_file_is_always_refused(tmp_path, name, options):
    (tmp_path / name).touch()
    with pytest.raises(MannersError, match=rf"{name}: the file is empty"):
        read(tmp_path / name, **options)


def test_file_of_blank_lines_is_refused(tmp_path):
    with pytest.raises(MannersError, match="it has no training rows"):
        read(write(tmp_path, "", "  ", ""))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"text": "a"}\n{"text": "b"}\n', "not valid JSON (Extra data"),
        (b'["caf\xe9"]', "not valid JSON ('utf-8' codec can't decode byte 0xe9"),
        (b"[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
        (b'{"rows": 1}', "a .json file must hold a list of rows"),
        (b'{"version": 1, "data": [], "more": []}', "it holds an object, and the rows seem to be in data, more"),
        (b'[{"text": "a", "text": "b"}]', "not valid JSON (field 'text' is there twice)"),
        (b"[]", "it has no training rows"),
    ],
    ids=["lines", "latin-1", "deep", "object", "lists in an object", "field twice", "empty list"],
)
def test_json_file_without_a_list_of_rows_is_refused(tmp_path, content, expected):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(MannersError) as error:
        read(path)
    assert f"{path}: {expected}" in str(error.value)


def test_unknown_format_names_the_fields_found_and_expected(tmp_path):
    with pytest.raises(
        MannersError, match=r"data.jsonl:1: no known field in \['answer', 'question'\]: expected one of "
    ):
        read(write(tmp_path, {"question": "a", "answer": "b"}))


def test_skipped_rows_are_counted_in_the_preview(tmp_path):
    from manners.pipeline.preview import token_counts

    splits = read(write(tmp_path, {"text": "a"}, {"text": ""}, {"text": "b"}, {"text": 3}), on_invalid_row="skip")
    assert len(splits.train) == len(splits.skipped) == 2
    line = token_counts(splits, [TokenizedExample([1, 2], [1, 2])] * 2)[-1]
    assert line == "left out (dataset.on_invalid_row=skip): 2 rows, the first: data.jsonl:2: field 'text' is empty"


def test_file_of_invalid_rows_only_is_refused_even_if_skipped(tmp_path):
    path = write(tmp_path, {"text": ""}, {"text": 3}, "no json")
    with pytest.raises(MannersError) as error:
        read(path, on_invalid_row="skip")
    assert str(error.value) == (
        f"dataset.path={path}: all 3 rows were malformed. The first: data.jsonl:1: field 'text' is empty."
    )


def test_rows_without_a_turn_of_loss_roles_are_refused(tmp_path):
    path = write(tmp_path, {"messages": EXCHANGE})
    with pytest.raises(MannersError, match=r"data\.jsonl:1: there is no 'system' turn to train on"):
        read(path, loss_roles="system")
    assert len(read(path, loss_roles="user").train) == 1
    prompt_only = write(tmp_path, {"messages": [user("Hi")]})
    assert len(read(prompt_only, loss_roles="all").train) == 1
