"""Paths of datasets, the errors for missing ones, and what datasets offer."""

from pathlib import Path

import pytest

from manners.data import sources
from manners.errors import MannersError


def test_local_path_finds_a_corpus_of_the_package():
    assert sources.local_path("package:strictbot").is_dir()
    assert sources.local_path("package:polite_helper/train.jsonl").is_file()


def test_local_path_refuses_an_unknown_corpus_with_a_suggestion():
    with pytest.raises(MannersError) as error:
        sources.local_path("package:strictbat")
    assert str(error.value) == (
        "dataset.path=package:strictbat: no such corpus in the package. Did you mean 'strictbot'?"
    )


def test_local_path_of_a_hub_name_is_none_unless_it_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources.local_path("org/name") is None
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert sources.local_path("org/name") == Path("org/name")


@pytest.mark.parametrize("name", ["trian.jsonl", "./trian.jsonl", "{folder}/trian.jsonl", "data/trian.jsonl"])
def test_local_path_refuses_a_missing_file_with_a_suggestion(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for folder in (tmp_path, tmp_path / "data"):
        (folder / "train.jsonl").touch()
        (folder / "notes.md").touch()
    path = name.format(folder=tmp_path)
    with pytest.raises(MannersError) as error:
        sources.local_path(path)
    assert str(error.value) == (f"dataset.path={path}: there is no such file or folder. Did you mean 'train.jsonl'?")


def test_local_path_names_a_folder_that_is_missing_too(tmp_path):
    with pytest.raises(MannersError, match=f"no such file or folder. There is nothing in {tmp_path / 'nowhere'}"):
        sources.local_path(str(tmp_path / "nowhere" / "train.jsonl"))


def test_local_path_expands_a_tilde(tmp_path, monkeypatch):
    """A shell does not expand the ~ in dataset.path=~/train.jsonl."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "train.jsonl").touch()
    assert sources.local_path("~/train.jsonl") == tmp_path / "train.jsonl"


def test_local_path_names_the_option_in_its_error():
    with pytest.raises(MannersError, match=r"^dataset\.eval_prompts_file=\./gone\.jsonl: there is no such file"):
        sources.local_path("./gone.jsonl", "dataset.eval_prompts_file")


def test_data_files_are_sorted_and_exclude_other_files(tmp_path):
    for name in ("LICENSE.txt", "a.jsonl", "b.json", "README.md", "d.csv", "a.tsv"):
        (tmp_path / name).touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "hidden.jsonl").touch()
    assert [p.name for p in sources.data_files(tmp_path)] == ["a.jsonl", "a.tsv", "b.json", "d.csv"]
    assert [p.name for p in sources.folder_files(tmp_path)[1]] == ["LICENSE.txt", "README.md"]
    assert sources.data_files(tmp_path / "a.tsv") == [tmp_path / "a.tsv"]


def test_text_files_are_data_where_there_are_no_others(tmp_path):
    for name in ("a.txt", "licence-mit.txt", "b.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in sources.data_files(tmp_path)] == ["a.txt", "b.txt"]
    assert [p.name for p in sources.folder_files(tmp_path)[1]] == ["licence-mit.txt"]


def test_file_that_is_there_twice_is_refused(tmp_path):
    for name in ("train.jsonl", "train.jsonl.gz"):
        (tmp_path / name).touch()
    with pytest.raises(MannersError, match=r"train.jsonl and train.jsonl.gz seem to hold the same rows"):
        sources.data_files(tmp_path)


@pytest.mark.parametrize("others", [[], ["README.md"]], ids=["empty", "no data"])
def test_data_files_refuses_a_folder_without_data(tmp_path, others):
    for name in others:
        (tmp_path / name).touch()
    with pytest.raises(MannersError) as error:
        sources.data_files(tmp_path)
    assert str(error.value) == (
        f"dataset.path={tmp_path}: the folder has no file that ends in .jsonl, .ndjson, .json, .txt, .csv, .tsv, "
        ".parquet, .arrow, .feather (also with .gz, .bz2, .xz, .zst)."
    )


def test_datasets_offering_a_sample_type():
    scored, conversation = sources.datasets_offering("scored"), sources.datasets_offering("conversation")
    assert "strictbot" in scored and "polite_helper" not in scored
    assert {"strictbot", "polite_helper", "jsonl"} <= set(conversation)
    assert "stanford_politeness" in scored and "dolly" not in scored
    assert sources.datasets_offering("preference") == ["strictbot", "strictbot_tiny"]
    assert sources.datasets_offering("images") == []
