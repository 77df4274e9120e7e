"""Folders that hold no model are refused by what is in them, before torch is imported."""

import json
import shutil

import pytest

from manners.errors import MannersError
from manners.runtime.model_files import model_folder, require_model


@pytest.fixture
def folder(tmp_path):
    """A copy of the packaged model."""
    return shutil.copytree(model_folder("tiny"), tmp_path / "model")


def without(*patterns):
    def change(folder):
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.unlink()

    return change


def with_file(name, content=""):
    return lambda folder: (folder / name).write_text(content)


def in_shards(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("*"), "the folder has no config.json"),
        (without("config.json"), "the folder has no config.json"),
        (without("tokenizer*", "vocab*"), "the folder has no tokenizer"),
        (without("*.safetensors"), "the folder has no weights in safetensors format."),
        (pickled, "pickled weights (.bin) are not read"),
        (in_shards, "model-00002-of-00002.safetensors is missing"),
        (with_file("run.json"), "this is a run: start from it with policy_from="),
        (with_file("adapter_config.json"), "this is an adapter"),
    ],
)
def test_require_model_says_what_a_folder_lacks(folder, change, message):
    require_model(str(folder))
    change(folder)
    with pytest.raises(MannersError) as error:
        require_model(str(folder))
    assert message in str(error.value) and str(error.value).startswith(f"model.name={folder}: ")


def test_require_model_wants_the_folder_of_a_file(folder):
    with pytest.raises(MannersError) as error:
        require_model(str(folder / "model.safetensors"))
    assert f"name the folder that it is in, model.name={folder}." in str(error.value)
