"""Where data lies, and what is said when it is not there."""

import json
from pathlib import Path

import pytest

from manners.data import sources
from manners.errors import MannersError


def test_a_corpus_of_the_package_is_found():
    assert sources.local_path("package:strictbot").is_dir()
    assert sources.local_path("package:polite_helper/train.jsonl").is_file()


def test_an_unknown_corpus_is_refused_with_the_nearest_name():
    with pytest.raises(MannersError) as refused:
        sources.local_path("package:strictbat")
    assert str(refused.value) == (
        "dataset.path=package:strictbat: no such corpus in the package. Did you mean 'strictbot'?"
    )


def test_a_name_with_one_slash_is_the_hubs_unless_it_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources.local_path("org/name") is None
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert sources.local_path("org/name") == Path("org/name")


@pytest.mark.parametrize("name", ["trian.jsonl", "./trian.jsonl", "{folder}/trian.jsonl", "data/trian.jsonl"])
def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for folder in (tmp_path, tmp_path / "data"):
        (folder / "train.jsonl").touch()
        (folder / "notes.md").touch()
    path = name.format(folder=tmp_path)
    with pytest.raises(MannersError) as refused:
        sources.local_path(path)
    assert str(refused.value) == (f"dataset.path={path}: there is no such file or folder. Did you mean 'train.jsonl'?")


def test_a_file_in_a_folder_that_is_missing_too_is_told_as_such(tmp_path):
    with pytest.raises(MannersError, match=f"no such file or folder. There is nothing in {tmp_path / 'nowhere'}"):
        sources.local_path(str(tmp_path / "nowhere" / "train.jsonl"))


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """A shell leaves the ~ in dataset.path=~/train.jsonl as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "train.jsonl").touch()
    assert sources.local_path("~/train.jsonl") == tmp_path / "train.jsonl"


def test_the_option_that_names_a_missing_file_is_told():
    with pytest.raises(MannersError, match=r"^dataset\.eval_prompts=\./gone\.jsonl: there is no such file"):
        sources.local_path("./gone.jsonl", "dataset.eval_prompts_file")


def test_the_data_files_of_a_folder_are_sorted_and_others_left_alone(tmp_path):
    for name in ("c.txt", "a.jsonl", "b.json", "README.md", "d.csv", "a.tsv"):
        (tmp_path / name).touch()
    assert [p.name for p in sources.data_files(tmp_path)] == ["a.jsonl", "b.json", "c.txt", "d.csv"]
    assert sources.data_files(tmp_path / "a.tsv") == [tmp_path / "a.tsv"]


@pytest.mark.parametrize("others", [[], ["README.md"]], ids=["empty", "no data"])
def test_a_folder_without_data_is_refused(tmp_path, others):
    for name in others:
        (tmp_path / name).touch()
    with pytest.raises(MannersError) as refused:
        sources.data_files(tmp_path)
    assert str(refused.value) == (
        f"dataset.path={tmp_path}: the folder has no file that ends in .jsonl, .json, .txt, .csv."
    )


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.jsonl", '{"text": "a"}\n\n{"text": "b"}', 2),
        ("a.txt", "a\n \nb\nc\n", 3),
        ("a.json", json.dumps([{"text": "a"}] * 5), 5),
        ("a.json", json.dumps([{"text": "a"}] * 5, indent=2), 5),
        ("a.json", "[{", 0),
        ("a.json", '{"text": "a"}', 0),
        ("a.jsonl", "", 0),
        ("a.csv", 'prompt,reply\na,b\n\n,\nc,"d\n\ne"\nf,g', 3),
        ("a.csv", "prompt,reply\n", 0),
        ("a.csv", "", 0),
        ("a.csv", 'prompt,reply\na,"b\nc,d\n', 0),
    ],
)
def test_rows_are_counted(tmp_path, name, content, rows):
    (tmp_path / name).write_text(content)
    assert sources.count_rows(tmp_path / name) == rows


def test_datasets_are_known_by_what_they_offer():
    scored, chats = sources.datasets_offering("scored"), sources.datasets_offering("chat")
    assert "strictbot" in scored and "polite_helper" not in scored
    assert {"strictbot", "polite_helper", "jsonl"} <= set(chats)
    assert "stanford_politeness" in scored and "dolly" not in scored
    assert sources.datasets_offering("pairs") == ["strictbot"]
    assert sources.datasets_offering("pictures") == []
