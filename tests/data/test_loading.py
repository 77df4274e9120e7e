"""Files of every format people have."""

import json

import pytest

from manners.data import loading
from manners.errors import MannersError
from manners.runtime import hub
from tests.data.files import ASKED, FORMATS, SYSTEM, assistant, config, read, user, write


@pytest.mark.parametrize("told", [True, False], ids=["told", "auto"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_read_whether_it_is_told_or_detected(tmp_path, name, told):
    path = write(tmp_path, *[row for row, _ in FORMATS[name]])
    splits = read(path, format=name if told else "auto")
    assert [chat.messages for chat in splits.train] == [messages for _, messages in FORMATS[name]]
    assert [chat.source for chat in splits.train] == [f"data.jsonl:{i + 1}" for i in range(len(FORMATS[name]))]


def test_rows_that_hold_a_rendered_text_too_are_read_by_their_parts(tmp_path):
    """As tatsu-lab/alpaca has them: the text is instruction and output in one."""
    path = write(tmp_path, {"instruction": "2 + 2?", "input": "", "output": "4.", "text": "Below is ... 2 + 2? ... 4."})
    assert read(path).train[0].messages == ASKED


def test_a_row_keeps_its_other_fields(tmp_path):
    chat = read(write(tmp_path, {"id": 7, "messages": ASKED, "category": "sums"})).train[0]
    assert chat.metadata == {"id": 7, "category": "sums"}


def test_each_line_of_a_txt_file_is_a_text(tmp_path):
    path = tmp_path / "tales.txt"
    path.write_bytes("One day.\r\n\n  Zwei Füchse.\n".encode())
    chats = read(path).train
    assert [c.messages for c in chats] == [
        [{"role": "text", "content": "One day."}],
        [{"role": "text", "content": "  Zwei Füchse."}],
    ]
    assert [c.source for c in chats] == ["tales.txt:1", "tales.txt:3"]


def test_a_txt_file_may_hold_marked_conversations(tmp_path):
    path = write(tmp_path, "<|user|>2 + 2?<|assistant|>4.", name="talks.txt")
    assert read(path).train[0].messages == ASKED


def test_a_json_list_is_read(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"messages": ASKED}, {"messages": [SYSTEM, *ASKED]}], indent=2))
    chats = read(path).train
    assert [c.messages for c in chats] == [ASKED, [SYSTEM, *ASKED]]
    assert chats[1].source == "data.json, row 2"


def test_a_folder_is_read_file_after_file(tmp_path):
    write(tmp_path, {"messages": [user("b"), assistant("2")]}, name="b.jsonl")
    write(tmp_path, {"messages": [user("a"), assistant("1")]}, name="a.jsonl")
    write(tmp_path, "not data", name="README.md")
    assert [c.source for c in read(tmp_path).train] == ["a.jsonl:1", "b.jsonl:1"]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path, name):
    rows = json.dumps({"messages": ASKED}) if name == "data.jsonl" else json.dumps([{"messages": ASKED}])
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert read(tmp_path / name).train[0].messages == ASKED


def test_blank_lines_and_windows_line_ends_are_no_rows(tmp_path):
    row = json.dumps({"messages": ASKED}).encode()
    (tmp_path / "data.jsonl").write_bytes(row + b"\r\n\r\n" + row + b"\r\n  \n")
    assert [c.source for c in read(tmp_path / "data.jsonl").train] == ["data.jsonl:1", "data.jsonl:3"]


def test_a_reply_of_a_megabyte_is_kept(tmp_path):
    reply = "yes " * 250_000 + "end"
    assert read(write(tmp_path, {"prompt": "Sure?", "completion": reply})).train[0].messages[1]["content"] == reply


# --- Splits ---


def test_rows_go_to_the_split_that_they_name(tmp_path):
    names = ["train", "validation", "test", "val", "valid", "dev", "eval"]
    splits = read(write(tmp_path, *[{"messages": ASKED, "split": name} for name in names]))
    assert [c.metadata["split"] for c in splits.train] == ["train"]
    assert [c.metadata["split"] for c in splits.validation] == ["validation", "val", "valid", "dev", "eval"]
    assert [c.metadata["split"] for c in splits.test] == ["test"]


@pytest.mark.parametrize("name", [None, 3, ["train"], "somewhere"])
def test_a_split_of_no_meaning_is_left_to_the_hash(tmp_path, name):
    path = write(tmp_path, {"messages": ASKED, "split": name})
    assert len(read(path).train) == 1


def test_the_hub_names_the_splits_of_its_rows(monkeypatch):
    tables = {
        "train_sft": [{"messages": ASKED}, {"messages": [SYSTEM, *ASKED]}],
        "test_sft": [{"messages": ASKED}],
        "validation": [{"messages": ASKED}],
    }
    monkeypatch.setattr(hub, "load_dataset", lambda path, name: tables if (path, name) == ("org/name", "en") else {})
    splits = loading.load_splits(config("org/name", name="en"))
    assert [c.source for c in splits.train] == ["org/name train_sft[0]", "org/name train_sft[1]"]
    assert [c.source for c in splits.test] == ["org/name test_sft[0]"]
    assert [c.source for c in splits.validation] == ["org/name validation[0]"]


def drawn(tmp_path, *context):
    """2,000 rows of 1,000 prompts with two replies each, split by hash."""
    rows = [[*context, user(f"What is {i}?"), assistant(reply)] for reply in ("A", "B") for i in range(1000)]
    path = write(tmp_path, *[{"messages": m} for m in rows])
    splits = read(path, validation_share=0.1, test_share=0.2)
    return [[c.messages[-2]["content"] for c in getattr(splits, name)] for name in loading.SPLITS]


@pytest.mark.parametrize("context", [[], [SYSTEM]], ids=["bare", "shared system message"])
def test_a_hash_splits_by_prompt_in_about_the_shares_asked_for(tmp_path, context):
    train, validation, test = drawn(tmp_path, *context)
    seen = [set(prompts) for prompts in (train, validation, test)]
    assert sum(len(s) for s in seen) == len(set.union(*seen)) == 1000  # no prompt is in two splits
    assert len(train) + len(validation) + len(test) == 2000
    # Four standard deviations of 1,000 draws: 4 * sqrt(0.1 * 0.9 / 1000) = 0.038; 0.051 for a share of 0.2.
    assert len(seen[1]) / 1000 == pytest.approx(0.1, abs=0.038)
    assert len(seen[2]) / 1000 == pytest.approx(0.2, abs=0.051)


def test_a_row_keeps_its_split_when_others_come_and_go(tmp_path):
    rows = [{"messages": [user(f"What is {i}?"), assistant("A")]} for i in range(200)]
    shares = {"validation_share": 0.3, "test_share": 0.3}
    of_all = {c.messages[0]["content"] for c in read(write(tmp_path, *rows), **shares).test}
    of_half = {c.messages[0]["content"] for c in read(write(tmp_path, *rows[::-2]), **shares).test}
    assert of_half == of_all & {r["messages"][0]["content"] for r in rows[::-2]}


def test_max_rows_counts_in_each_split(tmp_path):
    rows = [{"messages": ASKED, "split": s} for s in ("train", "test") for _ in range(5)]
    splits = read(write(tmp_path, *rows), max_rows=3)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (3, 0, 3)


# --- Evaluation prompts ---


def test_evaluation_prompts_are_read(tmp_path):
    path = write(tmp_path, {"prompt": "One?"}, {"prompt": "Two?"}, name="eval.jsonl")
    found = loading.eval_prompts(config("package:strictbot", eval_prompts_file=str(path)))
    assert [p.messages for p in found] == [[user("One?")], [user("Two?")]]
    assert loading.eval_prompts(config("package:strictbot")) == []


@pytest.mark.parametrize("row", ["nonsense", {"text": "a"}, {"prompt": 3}, ["a"]])
def test_a_bad_evaluation_prompt_is_refused_with_its_line(tmp_path, row):
    path = write(tmp_path, {"prompt": "One?"}, row, name="eval.jsonl")
    with pytest.raises(MannersError, match=r"eval\.jsonl:2: an evaluation prompt is a line"):
        loading.eval_prompts(config("package:strictbot", eval_prompts_file=str(path)))


def test_a_missing_file_of_evaluation_prompts_is_told_by_its_own_option(tmp_path):
    write(tmp_path, {"prompt": "One?"}, name="eval.jsonl")
    wrong = tmp_path / "evil.jsonl"
    with pytest.raises(MannersError) as refused:
        loading.eval_prompts(config("package:strictbot", eval_prompts_file=str(wrong)))
    assert str(refused.value) == (
        f"dataset.eval_prompts_file={wrong}: there is no such file or folder. Did you mean 'eval.jsonl'?"
    )
