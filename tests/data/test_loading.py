"""Rows of every format and kind of file, and the split that they go to."""

import json

import pytest

from manners.config.schema import DatasetConfig
from manners.data import formats, loading
from manners.errors import MannersError
from manners.runtime import hub
from tests.data.files import EXCHANGE, FORMATS, SYSTEM, assistant, config, read, user, write


def test_config_offers_exactly_the_registered_formats():
    choices = DatasetConfig.__dataclass_fields__["format"].metadata["choices"]
    assert set(choices) == {*formats.FORMATS, "auto", "oasst", "votes"}


@pytest.mark.parametrize("given", [True, False], ids=["given", "auto"])
@pytest.mark.parametrize("name", FORMATS)
def test_load_splits_reads_each_format_given_or_detected(tmp_path, name, given):
    path = write(tmp_path, *[row for row, _ in FORMATS[name]])
    splits = read(path, format=name if given else "auto")
    assert [chat.messages for chat in splits.train] == [messages for _, messages in FORMATS[name]]
    assert [chat.source for chat in splits.train] == [f"data.jsonl:{i + 1}" for i in range(len(FORMATS[name]))]


def test_a_prompt_in_several_splits_of_a_file_is_warned_of(tmp_path):
    rows = [{"messages": EXCHANGE, "split": split} for split in ("train", "test", "test")]
    other = {"messages": [user("And this?"), assistant("No.")], "split": "test"}
    [warning] = read(write(tmp_path, *rows, other)).warnings
    assert warning.startswith("2 of 3 test rows have the prompt of a training row")
    assert read(write(tmp_path, rows[0], other)).warnings == []


def test_dolly_and_guanaco_are_detected_by_their_fields(tmp_path):
    dolly = {"instruction": "Say it.", "context": "", "response": "It.", "category": "open_qa"}
    with_context = dolly | {"context": "A text."}
    guanaco = {"text": "### Human: Say it.### Assistant: It.### Human: Again?### Assistant: It."}
    one, two = read(write(tmp_path, dolly, with_context), validation_share=0, test_share=0).train
    assert [m["content"] for m in one.messages] == ["Say it.", "It."] and one.metadata == {"category": "open_qa"}
    assert two.messages[0]["content"] == "Say it.\n\nA text."
    (conversation,) = read(write(tmp_path, guanaco), validation_share=0, test_share=0).train
    assert [(m["role"], m["content"]) for m in conversation.messages] == [
        ("user", "Say it."), ("assistant", "It."), ("user", "Again?"), ("assistant", "It."),
    ]  # fmt: skip
    with pytest.raises(MannersError, match="field 'instruction'"):
        read(write(tmp_path, dolly, dolly | {"instruction": ""}))


def test_alpaca_row_with_rendered_text_is_read_by_its_parts(tmp_path):
    """tatsu-lab/alpaca: the text is instruction and output together."""
    path = write(tmp_path, {"instruction": "2 + 2?", "input": "", "output": "4.", "text": "Below is ... 2 + 2? ... 4."})
    assert read(path).train[0].messages == EXCHANGE


def test_other_fields_become_metadata(tmp_path):
    chat = read(write(tmp_path, {"id": 7, "messages": EXCHANGE, "category": "sums"})).train[0]
    assert chat.metadata == {"id": 7, "category": "sums"}


def test_each_line_of_a_txt_file_is_a_plain_text(tmp_path):
    path = tmp_path / "tales.txt"
    path.write_bytes("One day.\r\n\n  Zwei Füchse.\n".encode())
    chats = read(path).train
    assert [c.messages for c in chats] == [
        [{"role": "text", "content": "One day."}],
        [{"role": "text", "content": "  Zwei Füchse."}],
    ]
    assert [c.source for c in chats] == ["tales.txt:1", "tales.txt:3"]


def test_txt_file_may_hold_marked_conversations(tmp_path):
    path = write(tmp_path, "<|user|>2 + 2?<|assistant|>4.", name="talks.txt")
    assert read(path).train[0].messages == EXCHANGE


def test_json_list_is_read(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"messages": EXCHANGE}, {"messages": [SYSTEM, *EXCHANGE]}], indent=2))
    chats = read(path).train
    assert [c.messages for c in chats] == [EXCHANGE, [SYSTEM, *EXCHANGE]]
    assert chats[1].source == "data.json, row 2"


def test_folder_is_read_file_by_file(tmp_path):
    write(tmp_path, {"messages": [user("b"), assistant("2")]}, name="b.jsonl")
    write(tmp_path, {"messages": [user("a"), assistant("1")]}, name="a.jsonl")
    write(tmp_path, "not data", name="README.md")
    assert [c.source for c in read(tmp_path).train] == ["a.jsonl:1", "b.jsonl:1"]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_byte_order_mark_is_ignored(tmp_path, name):
    rows = json.dumps({"messages": EXCHANGE}) if name == "data.jsonl" else json.dumps([{"messages": EXCHANGE}])
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert read(tmp_path / name).train[0].messages == EXCHANGE


def test_blank_lines_and_windows_line_ends_are_ignored(tmp_path):
    row = json.dumps({"messages": EXCHANGE}).encode()
    (tmp_path / "data.jsonl").write_bytes(row + b"\r\n\r\n" + row + b"\r\n  \n")
    assert [c.source for c in read(tmp_path / "data.jsonl").train] == ["data.jsonl:1", "data.jsonl:3"]


def test_reply_of_a_megabyte_is_kept(tmp_path):
    reply = "yes " * 250_000 + "end"
    assert read(write(tmp_path, {"prompt": "Sure?", "completion": reply})).train[0].messages[1]["content"] == reply


# --- Splits ---


def test_rows_go_to_the_split_that_they_name(tmp_path):
    names = ["train", "validation", "test", "val", "valid", "dev", "eval"]
    splits = read(write(tmp_path, *[{"messages": EXCHANGE, "split": name} for name in names]))
    assert [c.metadata["split"] for c in splits.train] == ["train"]
    assert [c.metadata["split"] for c in splits.validation] == ["validation", "val", "valid", "dev", "eval"]
    assert [c.metadata["split"] for c in splits.test] == ["test"]


def test_hub_rows_go_to_the_split_of_the_hub(monkeypatch):
    tables = {
        "train_sft": [{"messages": EXCHANGE}, {"messages": [SYSTEM, *EXCHANGE]}],
        "test_sft": [{"messages": EXCHANGE}],
        "validation": [{"messages": EXCHANGE}],
    }
    monkeypatch.setattr(hub, "load_dataset", lambda path, name: tables if (path, name) == ("org/name", "en") else {})
    splits = loading.load_splits(config("org/name", name="en"))
    assert [c.source for c in splits.train] == ["org/name train_sft[0]", "org/name train_sft[1]"]
    assert [c.source for c in splits.test] == ["org/name test_sft[0]"]
    assert [c.source for c in splits.validation] == ["org/name validation[0]"]


def hash_split(tmp_path, *context):
    """2,000 rows of 1,000 prompts with two replies each, split by hash."""
    rows = [[*context, user(f"What is {i}?"), assistant(reply)] for reply in ("A", "B") for i in range(1000)]
    path = write(tmp_path, *[{"messages": m} for m in rows])
    splits = read(path, validation_share=0.1, test_share=0.2)
    return [[c.messages[-2]["content"] for c in getattr(splits, name)] for name in loading.SPLITS]


@pytest.mark.parametrize("context", [[], [SYSTEM]], ids=["bare", "shared system message"])
def test_hash_splits_by_prompt_in_the_requested_shares(tmp_path, context):
    train, validation, test = hash_split(tmp_path, *context)
    seen = [set(prompts) for prompts in (train, validation, test)]
    assert sum(len(s) for s in seen) == len(set.union(*seen)) == 1000  # no prompt is in two splits
    assert len(train) + len(validation) + len(test) == 2000
    # Four standard deviations for 1,000 prompts: 4 * sqrt(0.1 * 0.9 / 1000) = 0.038; 0.051 for a share of 0.2.
    assert len(seen[1]) / 1000 == pytest.approx(0.1, abs=0.038)
    assert len(seen[2]) / 1000 == pytest.approx(0.2, abs=0.051)


def test_row_keeps_its_split_when_other_rows_change(tmp_path):
    rows = [{"messages": [user(f"What is {i}?"), assistant("A")]} for i in range(200)]
    shares = {"validation_share": 0.3, "test_share": 0.3}
    test_of_all = {c.messages[0]["content"] for c in read(write(tmp_path, *rows), **shares).test}
    test_of_half = {c.messages[0]["content"] for c in read(write(tmp_path, *rows[::-2]), **shares).test}
    assert test_of_half == test_of_all & {r["messages"][0]["content"] for r in rows[::-2]}


def test_max_rows_limits_each_split(tmp_path):
    rows = [{"messages": EXCHANGE, "split": s} for s in ("train", "test") for _ in range(5)]
    splits = read(write(tmp_path, *rows), max_rows=3)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (3, 0, 3)


# --- Options that select rows ---


def test_min_score_quantile_drops_rows_but_not_of_the_test_split(tmp_path):
    rows = [{"text": f"row {i}", "score": i, "split": "train"} for i in range(8)]
    rows += [{"text": "v", "score": 1, "split": "validation"}, {"text": "t", "score": 0, "split": "test"}]
    splits = read(write(tmp_path, *rows), min_score_quantile=0.75)
    assert [c.metadata["score"] for c in splits.train] == [6, 7]
    assert (len(splits.validation), len(splits.test)) == (0, 1)
    assert splits.notes == ["6 of 8 train rows: score below 6", "1 of 1 validation rows: score below 6"]
    with pytest.raises(MannersError, match="no training row has a score"):
        read(write(tmp_path, {"text": "x"}), min_score_quantile=0.5, validation_share=0, test_share=0)


def test_include_alternatives_adds_rows_except_in_the_test_split(tmp_path):
    row = {"messages": EXCHANGE, "score": 1.0, "mismatched": [{"content": "no", "score": 0.2}]}
    rows = [row | {"split": split} for split in ("train", "validation", "test")]
    splits = read(write(tmp_path, *rows), include_alternatives=True)
    for kept in (splits.train, splits.validation):
        assert [(c.messages[-1]["content"], c.metadata["score"]) for c in kept] == [("4.", 1.0), ("no", 0.2)]
        assert [c.messages[:-1] for c in kept] == [row["messages"][:-1]] * 2
    assert [c.metadata["mismatched"] for c in splits.test] == [row["mismatched"]]


# --- Evaluation prompts ---


def test_eval_prompts_are_read(tmp_path):
    path = write(
        tmp_path,
        {"prompt": "One?"},
        {"prompt": "Two?", "system": "Be brief."},
        {"prompt": [SYSTEM, user("Three?")]},
        name="eval.jsonl",
    )
    prompts = loading.eval_prompts(config("package:strictbot", eval_prompts_file=str(path)))
    assert [p.messages for p in prompts] == [[user("One?")], [SYSTEM, user("Two?")], [SYSTEM, user("Three?")]]
    assert loading.eval_prompts(config("package:strictbot")) == []


@pytest.mark.parametrize("row", ["nonsense", {"text": "a"}, {"prompt": 3}, ["a"]])
def test_invalid_eval_prompt_is_refused_with_its_line(tmp_path, row):
    path = write(tmp_path, {"prompt": "One?"}, row, name="eval.jsonl")
    with pytest.raises(MannersError, match=r"eval\.jsonl:2: .*[aA]n evaluation prompt is a row"):
        loading.eval_prompts(config("package:strictbot", eval_prompts_file=str(path)))


def test_missing_eval_prompts_file_names_its_option(tmp_path):
    write(tmp_path, {"prompt": "One?"}, name="eval.jsonl")
    missing = tmp_path / "evil.jsonl"
    with pytest.raises(MannersError) as error:
        loading.eval_prompts(config("package:strictbot", eval_prompts_file=str(missing)))
    assert str(error.value) == (
        f"dataset.eval_prompts_file={missing}: there is no such file or folder. Did you mean 'eval.jsonl'?"
    )


def test_copy_of_the_rows_in_another_kind_of_file_is_refused(tmp_path):
    rows = [{"prompt": f"{i}?", "completion": "Yes."} for i in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(json.dumps([dict(reversed(row.items())) for row in rows]))
    with pytest.raises(MannersError, match=r"a.jsonl and b.json hold the same rows: take one of them away"):
        loading.load_splits(config(tmp_path))


def test_texts_that_may_mean_something_else_are_named_once(tmp_path):
    rows = [{"text": "[INST] Hi [/INST] Hello."}, {"text": "[INST] Bye [/INST] Bye."}, {"text": "A plain text."}]
    assert read(write(tmp_path, *rows)).warnings == [
        "[INST] is no turn marker that is read, but a part of the text: 2 rows, the first: data.jsonl:1"
    ]
    rows = [{"prompt": "Hi", "completion": "Hello."}, {"prompt": "What does [INST] mean?", "completion": "nan"}]
    assert read(write(tmp_path, *rows)).warnings == [
        "'nan' is read as what was said, not as a missing value: 1 rows, the first: data.jsonl:2"
    ]
