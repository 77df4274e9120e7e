"""The digest of reward functions: it follows their source, and the user's own modules that they import."""

import os

import pytest

from manners.rewards.source import source_digest

FILES = {
    "my_rewards.py": "import json\nimport helper\nfrom parts import words\n\ndef short(completions): ...\n",
    "helper.py": "import above.inner\nfrom parts.deep import number\n",
    "above/__init__.py": "K = 1\n",
    "above/inner.py": "",
    "parts/__init__.py": "K = 1\n",
    "parts/words.py": "from . import lists\nfrom .deep import number\n",
    "parts/lists.py": "WORDS = ['a']\n",
    "parts/deep.py": "number = 1\n",
    "unrelated.py": "x = 1\n",
}
CONFIG = {"model": {"weight": 1.0}, "short": {"weight": 0.5, "_target_": "my_rewards.short"}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_source_digest_follows_what_the_function_imports(folder, name):
    before = source_digest(CONFIG)
    (folder / name).write_text(FILES[name] + "# edited\n")
    assert (source_digest(CONFIG) != before) == (name != "unrelated.py")


def test_source_digest_is_that_of_the_files_wherever_they_are(folder, monkeypatch):
    before = source_digest(CONFIG)
    os.rename(folder, f"{folder}-moved")
    monkeypatch.chdir(f"{folder}-moved")
    assert source_digest(CONFIG) == before != ""


def test_functions_in_classes_and_in_arguments_count(folder):
    inner = {"f": {"_target_": "functools.partial", "inner": {"_target_": "parts.words.Judge.score"}}}
    before = source_digest(inner)
    (folder / "parts" / "words.py").write_text("")
    assert source_digest(inner) != before


def test_installed_functions_count_by_their_version(monkeypatch):
    assert source_digest({"brevity": {"_target_": "manners.rewards.functions.brevity"}}) != ""
    assert source_digest({"f": {"_target_": "json.dumps"}}) == ""
    before = source_digest({"f": {"_target_": "numpy.sum"}})
    assert before == source_digest({"f": {"_target_": "numpy.mean"}}) != ""
    monkeypatch.setattr("manners.rewards.source.version", lambda name: f"{name} of tomorrow")
    assert source_digest({"f": {"_target_": "numpy.sum"}}) != before
    assert source_digest({"f": {"_target_": "manners.rewards.functions.brevity"}}) != ""


def test_files_that_options_name_count_by_content(folder):
    config = {"f": {"_target_": "my_rewards.short", "options": {"lists": ["words.txt"]}}}
    missing = source_digest(config)
    (folder / "words.txt").write_text("a")
    first = source_digest(config)
    (folder / "words.txt").write_text("b")
    assert len({missing, first, source_digest(config)}) == 3


def test_model_that_an_option_names_counts_by_content(folder):
    config = {"f": {"_target_": "manners.rewards.functions.perplexity", "model_name": str(folder / "base")}}
    (folder / "base").mkdir()
    first = source_digest(config)
    (folder / "base" / "config.json").write_text("{}")
    assert source_digest(config) != first


def test_what_is_no_function_has_no_digest():
    assert source_digest({"model": {"weight": 1.0}}) == source_digest({"f": {"_target_": "no.such.f"}}) == ""


def test_function_that_is_no_python_is_left_to_the_import(folder):
    (folder / "helper.py").write_text("def (")
    assert source_digest(CONFIG) != ""
