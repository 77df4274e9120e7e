"""The digest of a model: of what its files hold, wherever they are and whatever they are called."""

import hashlib
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manners.runtime import model_files
from manners.runtime.model_files import folder_digest, model_digest
from tests import hub_cache

LOADED = (
    *("model.safetensors", "model-00001-of-00002.safetensors", "adapter_model.safetensors", "adapter_config.json"),
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "spiece.model", "chat_template.jinja", "normalizer.json"),
)


def make_model(folder, content="1", names=LOADED):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize("name", LOADED)
def test_folder_digest_changes_with_every_file_that_is_loaded(tmp_path, name):
    folder = make_model(tmp_path / "a")
    before = folder_digest(folder)
    (folder / name).write_text("2")
    edited = folder_digest(folder)
    (folder / name).unlink()
    assert len({before, edited, folder_digest(folder)}) == 3


def test_folder_digest_ignores_place_time_and_notes(tmp_path):
    folder = make_model(tmp_path / "a")
    before = folder_digest(folder)
    copy = shutil.copytree(folder, tmp_path / "b")
    os.utime(copy / "model.safetensors", (1, 1))
    for name in ("README.md", ".gitattributes", "training_args.bin", "manners.yaml", "trainer_state.json"):
        (copy / name).write_text("x")
    assert folder_digest(copy) == before == model_digest(str(copy))


@given(st.dictionaries(st.sampled_from(LOADED), st.binary(max_size=4), min_size=1), st.randoms())
@settings(max_examples=30, deadline=None)
def test_model_with_other_content_has_another_digest(tmp_path_factory, content, random):
    folder = tmp_path_factory.mktemp("model")
    for name, data in content.items():
        (folder / name).write_bytes(data)
    before = folder_digest(folder)
    name = random.choice(sorted(content))
    (folder / name).write_bytes(content[name] + b"!")
    assert folder_digest(folder) != before


def test_same_size_and_time_do_not_hide_an_edit(tmp_path):
    file = make_model(tmp_path / "a") / "model.safetensors"
    before, stat = folder_digest(file.parent), file.stat()
    file.write_text("2")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as rsync and cp -p leave it
    assert folder_digest(file.parent) != before


def test_large_file_is_hashed_once_for_all_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(model_files, "LARGE", 2)
    folder = make_model(tmp_path / "a", "large", ["model.safetensors"])
    original, hashed = hashlib.file_digest, []
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: hashed.append(args) or original(*args))
    digests = []
    for _ in range(3):
        model_files.content_digest.cache_clear()  # another process
        digests.append(folder_digest(folder))
    assert len(hashed) == 1 and len(set(digests)) == 1
    (folder / "model.safetensors").write_text("other")
    assert folder_digest(folder) != digests[0] and len(hashed) == 2


def test_unwritable_cache_costs_no_digest(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    folder = make_model(tmp_path / "a", "large", ["model.safetensors"])
    before = folder_digest(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(model_files, "LARGE", 2)
    model_files.content_digest.cache_clear()
    assert folder_digest(folder) == before


def test_hub_model_is_its_snapshot_in_the_cache(tmp_path, monkeypatch):
    hub_cache.use(tmp_path, monkeypatch)
    assert model_digest("org/model") == ""  # not on this machine
    folder = make_model(tmp_path / "files")
    snapshot = hub_cache.create_snapshot(tmp_path, "org/model", folder)
    assert model_files.model_folder("org/model") == snapshot
    assert model_files.model_folder("org/model", hub_cache.COMMIT) == snapshot
    assert model_digest("org/model", download=True) == folder_digest(folder)  # offline: nothing to fetch
    (snapshot / "model.safetensors").write_text("2")
    assert model_digest("org/model") != folder_digest(folder)


def test_package_model_has_a_digest():
    assert len(model_digest("tiny")) == 12
    assert model_digest("/nowhere/at/all") == ""
