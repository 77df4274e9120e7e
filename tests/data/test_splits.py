"""Which split a row goes to: by its own word, by its file's name, or by a hash; what is missing is carved out."""

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manners.data.splits import SPLIT_NAMES, split_named
from manners.errors import MannersError
from manners.runtime import hub
from tests.data.files import EXCHANGE, assistant, config, read, user, write

SHARES = {"validation_share": 0.1, "test_share": 0.1}


def rows(split, count, start=0):
    return [{"messages": [user(f"{i}?"), assistant("Yes.")], "split": split} for i in range(start, start + count)]


def prompts(conversations):
    return {c.messages[0]["content"] for c in conversations}


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(SPLIT_NAMES)),
    st.sampled_from([str, str.upper, str.title, " {}\t".format]),
    st.sampled_from(["", "_sft", "_gen", "-00000-of-00003", ".jsonl", " set", "_prefs", "1"]),
)
def test_split_is_named_in_any_spelling(name, spelling, suffix):
    assert split_named(spelling(name + suffix)) == SPLIT_NAMES[name]


@pytest.mark.parametrize("name", ["TEST", "test_sft", " Test ", "testing"])
def test_row_goes_to_the_split_that_it_spells_otherwise(tmp_path, name):
    assert len(read(write(tmp_path, *rows(name, 1), *rows("train", 1))).test) == 1


@pytest.mark.parametrize("name", ["somewhere", 3, ["train"], "trainer", "attest", "1", "train_test"])
def test_unknown_split_name_is_refused(tmp_path, name):
    path = write(tmp_path, *rows(name, 1))
    with pytest.raises(MannersError) as error:
        read(path)
    assert str(error.value).startswith(f"data.jsonl:1: field 'split' is {name!r}: expected train, validation, test (")
    assert len(read(path, columns={"split": None}).train) == 1
    assert len(read(write(tmp_path, *rows(name, 1), *rows(None, 2)), on_invalid_row="skip").train) == 2


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        (["train_human_eval.jsonl", "train_math.jsonl", "test.jsonl"], {"test.jsonl"}),
        (["train_test_split.jsonl", "val.jsonl"], {"val.jsonl"}),
        (["unit_test_generation.jsonl", "cooking.jsonl", "dev.jsonl"], {"dev.jsonl"}),
        (["evaluation_of_essays/a.jsonl", "test_sft/b.jsonl"], {"test_sft/b.jsonl"}),
        (["alpaca.train.jsonl", "alpaca-test-00000-of-00001.jsonl"], {"alpaca-test-00000-of-00001.jsonl"}),
    ],
)
def test_words_within_names_hold_nothing_out(tmp_path, names, held_out):
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, {"messages": EXCHANGE, "number": number}, name=name)
    splits = read(tmp_path)
    assert {c.source.partition(":")[0] for c in splits.validation + splits.test} == held_out


def test_rows_without_a_split_are_training_rows_beside_others(tmp_path):
    path = write(tmp_path, *rows("test", 3), *rows("validation", 3, start=3), *rows(None, 60, start=6))
    splits = read(path, **SHARES)
    assert (prompts(splits.test), prompts(splits.validation)) == ({"0?", "1?", "2?"}, {"3?", "4?", "5?"})
    assert len(splits.train) == 60


def test_missing_validation_is_carved_out_of_training(tmp_path):
    splits = read(write(tmp_path, *rows("train", 200), *rows("test", 20, start=200)), **SHARES)
    assert prompts(splits.test) == {f"{i}?" for i in range(200, 220)}
    assert 8 <= len(splits.validation) <= 36  # 20 expected; four standard deviations are 17
    assert len(splits.train) + len(splits.validation) == 200
    assert not prompts(splits.train) & prompts(splits.validation)


def test_missing_test_is_carved_out_of_training(tmp_path):
    splits = read(write(tmp_path, *rows("train", 200), *rows("validation", 20, start=200)), **SHARES)
    assert len(splits.validation) == 20
    assert 4 <= len(splits.test) <= 36
    assert len(splits.train) + len(splits.test) == 200


def test_rows_that_all_say_train_give_both(tmp_path):
    splits = read(write(tmp_path, *rows("train", 200)), **SHARES)
    assert splits.validation and splits.test and len(splits.train) > 120
    assert not prompts(splits.validation) & prompts(splits.test)
    unnamed = read(write(tmp_path, *rows(None, 200)), **SHARES)
    assert prompts(unnamed.test) == prompts(splits.test)


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 40), st.integers(1, 3))
def test_few_prompts_still_give_every_split(tmp_path_factory, count, replies):
    data = [row for row in rows(None, count) for _ in range(replies)]
    splits = read(write(tmp_path_factory.mktemp("few"), *data), **SHARES)
    parts = [prompts(splits.train), prompts(splits.validation), prompts(splits.test)]
    assert all(parts) and sum(map(len, parts)) == count


def test_share_of_zero_carves_nothing(tmp_path):
    splits = read(write(tmp_path, *rows("train", 20), *rows("test", 5, start=20)), validation_share=0.0, test_share=0.1)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (20, 0, 5)


def test_rows_of_one_split_alone_are_read(tmp_path):
    splits = read(write(tmp_path, *rows("test", 3)), **SHARES)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (0, 0, 3)


def test_files_of_a_folder_name_their_split(tmp_path):
    for name, count in (("train.jsonl", 3), ("Test_sft.jsonl", 2), ("dev-00000-of-00001.jsonl", 1)):
        write(tmp_path, *[{"messages": EXCHANGE}] * count, name=name)
    splits = read(tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (3, 1, 2)


def test_later_word_of_a_file_name_says_its_split(tmp_path):
    for name, count in (("alpaca_train.jsonl", 3), ("alpaca-test-00000-of-00001.jsonl", 2), ("my_dev.jsonl", 1)):
        write(tmp_path, *[{"messages": EXCHANGE}] * count, name=name)
    splits = read(tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (3, 1, 2)


def test_folder_that_only_says_train_is_split_like_a_file(tmp_path):
    write(tmp_path, *[{k: v for k, v in row.items() if k != "split"} for row in rows("", 60)], name="train.jsonl")
    splits = read(tmp_path, **SHARES)
    assert splits.validation and splits.test


def test_unknown_split_of_the_hub_is_refused_with_those_to_read(monkeypatch):
    tables = {"train": [{"text": "a"}], "unsupervised": [{"text": "b"}], "test": [{"text": "c"}]}
    monkeypatch.setattr(hub, "load_dataset", lambda path, name: tables)
    from manners.data.loading import load_splits

    with pytest.raises(
        MannersError, match=r"'unsupervised', which is none of .*: name those to read, .*=\[train,test\]"
    ):
        load_splits(config("org/name"))
    assert len(load_splits(config("org/name", splits=["train", "test"], validation_share=0.0)).train) == 1


def test_folder_that_datasets_saved_is_read_by_split(tmp_path):
    one, two = (datasets.Dataset.from_list([{"messages": EXCHANGE}] * count) for count in (3, 2))
    datasets.DatasetDict({"train": one, "test": two}).save_to_disk(tmp_path / "both")
    splits = read(tmp_path / "both")
    assert (len(splits.train), len(splits.test)) == (3, 2)
    one.save_to_disk(tmp_path / "one")
    assert len(read(tmp_path / "one").train) == 3


def test_plain_texts_with_one_opening_stay_in_one_split(tmp_path):
    """The opening is the prompt: in training and test it would be the same one."""
    openings = [f"Could you, reader {i}," for i in range(40)]
    texts = [{"text": f"{opening} {end}"} for end in ("help me?", "stop that now!", "say why?") for opening in openings]
    splits = read(write(tmp_path, *texts), format="text", prefix_words=4, **SHARES)
    parts = [
        {" ".join(c.messages[0]["content"].split()[:4]) for c in getattr(splits, name)}
        for name in ("train", "validation", "test")
    ]
    assert all(parts)
    assert sum(map(len, parts)) == len(openings)
    without = read(write(tmp_path, *texts), format="text", prefix_words=0, **SHARES)
    assert len(without.train) + len(without.validation) + len(without.test) == 120
