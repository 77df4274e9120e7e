"""A mistake on the command line or in a recipe ends with one sentence that names it, before torch is imported."""

import os
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml
from hydra.core.plugins import Plugins

from manners.cli.main import main, validate_command_line
from manners.config import compose as compose_module
from manners.config.schema import (
    AdapterConfig,
    DatasetConfig,
    EvaluationConfig,
    HardwareConfig,
    ModelConfig,
    SFTConfig,
    TrackingConfig,
    TrainConfig,
    register_schemas,
)
from manners.errors import MannersError
from manners.runtime import paths
from tests.configs import compose


def train(*args):
    """train.py in a process of its own, with a terminal wide enough that no table wraps."""
    return subprocess.run(
        [sys.executable, "train.py", *args],
        cwd=paths.ROOT,
        env=os.environ | {"COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def refusal(*overrides, multirun=False):
    """What train.py says to ``overrides``, found out in this process."""
    register_schemas()
    Plugins.instance().register(compose_module.UserConfigDir)
    with pytest.raises(MannersError) as caught:
        validate_command_line("train", list(overrides), multirun)
    return str(caught.value)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes a recipe into a copy of experiments/ that stands in for the real one."""
    shutil.copytree(paths.EXPERIMENTS, tmp_path / "experiments")
    monkeypatch.setattr(compose_module, "ROOT", tmp_path)
    monkeypatch.setattr(compose_module, "EXPERIMENTS", tmp_path / "experiments")

    def write(name, text, encoding="utf-8"):
        path = tmp_path / "experiments" / "study" / f"{name}.yaml"
        path.write_text(f"# @package _global_\n{text}\n", encoding=encoding)
        return f"study={name}"

    return write


def test_a_mistyped_key_ends_the_program_with_one_line():
    done = train("method.learning_rte=1e-4")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "error: method.learning_rte: there is no option 'method.learning_rte'. Did you mean 'method.learning_rate'?\n"
    )


def test_mistakes_and_help_are_answered_without_importing_anything_heavy():
    code = """
import runpy, sys
for args in (["method.learning_rte=1"], ["dataset.view=x"], ["--help"], ["--cfg", "job"]):
    sys.argv = ["train.py", *args]
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit:
        pass
    print("LOADED", sorted({"torch", "transformers", "mlflow", "lightning", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, timeout=120)
    answers = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    assert answers == ["LOADED []"] * 4, done.stderr


def test_help_tells_every_option_with_its_meaning_and_every_choice_of_every_group():
    done = train("--help")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    schemas = {
        "": TrainConfig,
        "model.": ModelConfig,
        "dataset.": DatasetConfig,
        "method.": SFTConfig,
        "adapter.": AdapterConfig,
        "hardware.": HardwareConfig,
        "evaluation.": EvaluationConfig,
        "tracking.": TrackingConfig,
    }
    options = [(f"{group}{f.name}", f) for group, schema in schemas.items() for f in fields(schema) if f.metadata]
    assert len(options) > 50
    for key, field in options:
        assert field.metadata["help"] in lines[key]
        assert all(choice in lines[key] for choice in field.metadata["choices"])
    for file in [*paths.CONF.glob("*/*.yaml"), *paths.EXPERIMENTS.glob("study/*.yaml")]:
        comments = [c for c in file.read_text().splitlines() if c.startswith("#") and "@package" not in c]
        assert f" {file.stem} " in done.stdout
        assert comments[0].removeprefix("# ") in done.stdout


def test_help_explains_the_config_that_the_rest_of_the_line_makes():
    done = train("--help", "study=polite_helper", "seed=77")
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if len(line.split()) > 1}
    assert rows["seed"] == "77"
    assert rows["model.chat_template"] == "marked"


def test_cfg_job_prints_the_whole_config_and_runs_nothing():
    done = train("--cfg", "job", "method.learning_rate=0.5")
    assert done.returncode == 0, done.stderr
    printed = yaml.safe_load(done.stdout)
    assert printed["method"]["learning_rate"] == 0.5
    assert set(printed) == {f.name for f in fields(TrainConfig)}
    assert set(printed["method"]) == {f.name for f in fields(SFTConfig)}


def test_info_shows_where_configs_are_looked_for():
    done = train("--info")
    assert done.returncode == 0, done.stderr
    assert (paths.ROOT / "conf").as_uri() in done.stdout
    assert (paths.ROOT / "experiments").as_uri() in done.stdout


@pytest.mark.parametrize(
    "args, says",
    [
        (["seed=1,2"], "seed=1,2 lists several values: add -m"),
        (["-m", "study=glob(zzz*)"], "study=glob(zzz*) matches nothing"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(args, says):
    done = train(*args)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "override, says",
    [
        ("sed=3", "sed: there is no option 'sed'. Did you mean 'seed'?"),
        ("traking.uri=x", "there is no option 'traking'. Did you mean 'tracking'?"),
        ("adapter.R=4", "there is no option 'adapter.R'"),
        ("+method.foo=1", "+method.foo=1: there is no option 'method.foo'"),
        ("++method.learning_rat=1", "++method.learning_rat=1: there is no option 'method.learning_rat'. Did you mean"),
        ("+foo.bar=1", "+foo.bar=1: there is no option 'foo'"),
        ("method.learning_rate=fast", "method.learning_rate=fast: Value 'fast'"),
        ("method.max_length=1e3", "method.max_length=1e3: Value '1000.0' of type 'float' could not be converted"),
        ("preview=perhaps", "preview=perhaps: Value 'perhaps' is not a valid bool"),
        ("model.name=null", "model.name=null"),
        ("dataset.sample_types=conversation", "dataset.sample_types=conversation"),
        ("adapter.kind=lor", "adapter.kind=lor is not a choice. Did you mean 'lora'?"),
        ("dataset.on_invalid_row=ignore", "dataset.on_invalid_row=ignore is not a choice. Known: raise, skip."),
        ("model=tinny", "model=tinny: no 'tinny' in model. Did you mean 'tiny'?"),
        ("study=strictbt", "study=strictbt: no 'strictbt' in study. Did you mean 'strictbot'?"),
        ("study=null", "Config group override must be a string"),
        ("seed=${nope}", "seed=${nope}: Interpolation key 'nope' not found"),
        ("dataset=jsonl", "dataset.path has no value, and there is no default: set dataset.path=VALUE."),
        ("nonsense", "'nonsense' cannot be read as KEY=VALUE"),
    ],
)
def test_a_wrong_override_is_named_with_what_to_type_instead(override, says):
    assert says in refusal(override)


@pytest.mark.parametrize(
    "text, says",
    [
        ("method: {learning_rte: 1}", "there is no option 'method.learning_rte'. Did you mean 'method.learning_rate'?"),
        ("sed: 3", "there is no option 'sed'. Did you mean 'seed'?"),
        ("method: {learning_rate: fast}", "method.learning_rate: Value 'fast' of type 'str' could not be converted"),
        ("defaults: [{override /model: tinny}]", "no 'tinny' in model. Did you mean 'tiny'?"),
        ("seed: ${nope}", "seed: Interpolation key 'nope' not found"),
        ("method: [1\n  - : {", "not valid yaml"),
        ("seed: 1\nseed: 2", "found duplicate key seed"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_with_its_file(recipe, text, says):
    said = refusal(recipe("mine", text))
    assert says in said
    assert "experiments/study/mine.yaml" in said


@pytest.mark.parametrize(
    "text, says", [("- seed", "Cannot merge DictConfig with ListConfig"), ("method: 3", "int is not")]
)
def test_a_recipe_of_the_wrong_shape_says_what_is_wrong_with_it(recipe, text, says):
    said = refusal(recipe("mine", text))
    assert "study/mine" in said
    assert says in said


def test_a_recipe_that_is_not_utf8_is_named(recipe):
    said = refusal(recipe("mine", "experiment_name: café", encoding="latin-1"))
    assert said.startswith("experiments/study/mine.yaml: the file is not UTF-8 text")


def test_an_override_is_blamed_for_its_own_typo_not_the_recipe(recipe):
    assert refusal(recipe("good", "seed: 3"), "+method.foo=1").startswith("+method.foo=1:")


def test_every_value_of_a_sweep_is_checked_before_the_first_job_starts():
    assert "adapter.r=0 must be at least 1" in refusal("adapter.r=4,8,0", "seed=1,2", multirun=True)


def test_a_good_sweep_passes():
    register_schemas()
    Plugins.instance().register(compose_module.UserConfigDir)
    assert validate_command_line("train", ["study=glob(*bot)", "seed=1,2"], multirun=True) is None


def test_quick_shortens_a_run_and_leaves_what_the_command_says_itself():
    cfg = compose("study=chatbot", "debug=quick", "method.max_steps=7")
    assert (cfg.dataset.max_rows, cfg.method.max_steps, cfg.evaluation.test_prompts) == (100, 7, 40)
    assert compose("study=chatbot").dataset.max_rows == 5000
    online = compose("method=ppo", "debug=quick").method
    assert online.total_episodes // online.batch_size * online.num_ppo_epochs * online.num_mini_batches == 20


def test_a_recipe_has_settings_for_each_of_its_stages_and_for_the_tiny_model():
    sft, ppo = (compose("study=polite_gpt2", "dataset=requests", f"method={m}") for m in ("sft", "ppo"))
    assert (sft.dataset.min_score_quantile, ppo.dataset.min_score_quantile) == (0.75, None)
    assert (sft.method.learning_rate, ppo.method.learning_rate) == (2e-4, 1e-4)
    tiny = compose("study=polite_gpt2", "dataset=requests", "model=tiny")
    assert (tiny.method.learning_rate, list(tiny.reward_run_overrides)) == (1e-3, ["adapter=none"])
    assert list(ppo.reward_run_overrides) == ["model=bert", "adapter=none"]


def test_on_a_mac_what_its_gpu_lacks_falls_back_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    for given, expected in ((None, "1"), ("0", "0")):
        if given is None:
            monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
        else:
            monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", given)
        main("train", print)
        assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == expected
