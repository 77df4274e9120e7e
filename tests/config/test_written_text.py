"""A text option keeps the text that was written, in files and on the command line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from manners.config import compose, schema
from manners.config.written_text import quote_text, text_options
from manners.sweep.jobs import with_values
from tests.configs import changed

OPTIONS = set(text_options(schema.TrainConfig))
MISREAD = ["no", "off", "y", "True", "12e8", "1e5", "0x10", "007", "1_000", "12:30", ".5", "nan", "-inf", "2024-01-31"]


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe with some values of the dataset and the model."""

    def write(text):
        (tmp_path / "experiment").mkdir(exist_ok=True)
        header = "# @package _global_\ndefaults:\n  - override /dataset: jsonl\n"
        (tmp_path / "experiment" / "mine.yaml").write_text(header + text)
        compose.register(str(tmp_path))

    yield write
    compose.register()


def test_text_options_are_those_that_hold_texts():
    texts = {
        "run_name",
        "model.revision",
        "dataset.languages",
        "dataset.path",
        "method.lr_scheduler_type",
        "tracking.uri",
    }
    assert texts <= OPTIONS
    assert not OPTIONS & {"seed", "dataset.max_rows", "method.learning_rate", "resume", "dataset.columns", "method"}
    assert {"dataset.path", "dataset.name", "run"} <= set(text_options(schema.EvaluateConfig)) | {"run"}


def test_recipe_keeps_texts_that_yaml_reads_otherwise(recipe):
    languages = ", ".join(MISREAD)
    recipe(f"dataset:\n  path: 1e5\n  languages: [{languages}]\nmodel: {{revision: 12e8}}\nrun_name: off\nseed: 1_0\n")
    cfg = compose.compose("train", ["experiment=mine"])
    assert list(cfg.dataset.languages) == MISREAD
    assert (cfg.dataset.path, cfg.model.revision, cfg.run_name, cfg.seed) == ("1e5", "12e8", "off", 10)
    cfg = compose.compose("train", ["experiment=mine", "dataset.languages=[de]", "run_name=null", "model.revision=x"])
    assert (list(cfg.dataset.languages), cfg.run_name, cfg.model.revision) == (["de"], None, "x")


@pytest.mark.parametrize("written", MISREAD)
def test_command_line_keeps_a_text_as_written(written):
    cfg = compose.compose("train", [f"run_name={written}", f"dataset.languages=[en,{written},'a,b']"])
    assert (cfg.run_name, list(cfg.dataset.languages)) == (written, ["en", written, "a,b"])
    again = OmegaConf.create(OmegaConf.to_yaml(cfg))  # as a run's config.yaml is read again
    assert (again.run_name, again.dataset.languages) == (written, ["en", written, "a,b"])


def test_values_of_a_sweep_keep_their_text():
    with compose.hydra_context():
        assert with_values(changed(), ["run_name=1e5"]).run_name == "1e5"
    assert quote_text("run_name=1e5,a,2", OPTIONS) == 'run_name="1e5",a,"2"'
    assert quote_text("seed=1,2", OPTIONS) == "seed=1,2"


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.integers(), st.floats(), st.booleans()))
def test_any_number_is_quoted_for_a_text_option_alone(value):
    assert quote_text(f"run_name={value}", OPTIONS) == f'run_name="{value}"'
    assert quote_text(f"seed={value}", OPTIONS) == f"seed={value}"
