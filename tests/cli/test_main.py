"""A mistake on the command line or in a recipe ends with one sentence that names it, before torch is imported."""

import os
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml
from omegaconf import OmegaConf

from manners.cli.main import check_command_line, main
from manners.config.compose import RunSpec, plan_run, register
from manners.config.schema import (
    AdapterConfig,
    DatasetConfig,
    EvaluationConfig,
    HardwareConfig,
    ModelConfig,
    SFTConfig,
    TrackingConfig,
    TrainConfig,
)
from manners.errors import MannersError
from manners.runtime import paths
from tests import commands
from tests.configs import tiny


def python(*args):
    """A Python process in the repository, with a terminal wide enough that no table wraps."""
    return subprocess.run(
        [sys.executable, *args],
        cwd=paths.ROOT,
        env=os.environ | {"COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def train(*args):
    return python("train.py", *args)


def error_of(*overrides, script="train", multirun=False, config_dir=None):
    """The error that the command line ends with, in this process."""
    register(config_dir)
    try:
        with pytest.raises(MannersError) as caught:
            check_command_line(script, list(overrides), multirun)
    finally:
        register()
    return str(caught.value)


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe of the user's own: the error of a command that uses it by --config-dir, and its file."""

    def write(text, *overrides, encoding="utf-8"):
        path = tmp_path / "experiment" / "mine.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# @package _global_\n{text}\n", encoding=encoding)
        return error_of("experiment=mine", *overrides, config_dir=str(tmp_path)), path

    return write


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("train", ["debug=true"], "the value of a group is the name of a choice, such as debug=quick"),
        ("train", ["~method.learning_rate"], "an option cannot be removed, only set"),
        ("train", ["lr=1e-4"], "there is no option 'lr'. Did you mean 'method.learning_rate'?"),
        ("train", ["--epochs", "3"], "KEY=VALUE: method.num_train_epochs=3"),
        ("train", ["--config-name", "foo"], "recipes of your own are given by --config-dir DIR experiment=NAME"),
        ("chat", ["model=tiny"], "model=tiny: chat.py has no group 'model': see python chat.py --help"),
        (
            "evaluate",
            ["dataset.path=a.jsonl"],
            "a.jsonl: there is no dataset to change yet: dataset=jsonl",
        ),
    ],
)
def test_misused_form_is_answered_with_the_right_one(script, words, message):
    result = python(f"{script}.py", *words)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and message in result.stderr


def test_mistyped_key_ends_the_program_with_one_line():
    done = train("method.learning_rte=1e-4")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "error: method.learning_rte=1e-4: there is no option 'method.learning_rte'. "
        "Did you mean 'method.learning_rate'?\n"
    )


def test_mistakes_and_help_import_nothing_heavy():
    code = """
import runpy, sys
for args in (["method.learning_rte=1"], ["dataset.view=x"], ["--help"], ["--cfg", "job"], ["tracking.uri=http://[::1]:9"]):
    sys.argv = ["train.py", *args]
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit:
        pass
    print("LOADED", sorted({"torch", "transformers", "mlflow", "lightning", "numpy"} & set(sys.modules)))
"""
    done = python("-c", code)
    assert [line for line in done.stdout.splitlines() if line.startswith("LOADED")] == ["LOADED []"] * 5, done.stderr


def test_bad_reward_function_ends_before_torch_is_imported():
    code = """
import runpy, sys
sys.argv = ["train.py", "method=ppo", "model=tiny", "method.rewards={x: {_target_: builtins.len}}"]
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit:
    pass
print("LOADED", sorted({"torch", "transformers", "mlflow", "lightning"} & set(sys.modules)))
"""
    done = python("-c", code)
    assert "error: method.rewards.x failed: TypeError: len()" in done.stderr
    assert done.stdout.endswith("LOADED []\n")


def test_ppo_command_composes_at_most_three_configs():
    """One for PPO, and one for each run that it starts from. Hydra's own entry point would be counted too."""
    code = """
import runpy, sys
from hydra._internal.config_loader_impl import ConfigLoaderImpl

count, load = 0, ConfigLoaderImpl.load_configuration

def counted(*args, **kwargs):
    global count
    count += 1
    return load(*args, **kwargs)

ConfigLoaderImpl.load_configuration = counted
sys.argv = ["train.py", "method=ppo", "plan=true"]
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit as end:
    print("EXIT", end.code)
print("COMPOSED", count)
"""
    done = python("-c", code)
    assert "EXIT 0" in done.stdout, done.stderr
    assert 1 <= int(done.stdout.split("COMPOSED ")[1]) <= 3


OWN_REWARD = ["method=ppo", "method.rewards={short: {_target_: my.f}}"]


@pytest.mark.parametrize(
    "overrides",
    [[], ["debug=quick", "seed=7"], ["method=ppo", "debug=quick"], ["experiment=human_user_tiny"], OWN_REWARD],
)
def test_cfg_job_prints_the_config_that_runs(overrides):
    done = train("--cfg", "job", *overrides)
    assert done.returncode == 0, done.stderr
    register()
    assert yaml.safe_load(done.stdout) == OmegaConf.to_container(plan_run(overrides).cfg)


def test_cfg_job_is_the_config_that_the_run_stores(tmp_path):
    command = [*commands.small_strictbot(tmp_path), *commands.SMALL, "debug=quick", "method.max_steps=1"]
    command.append(f"output_dir={tmp_path / 'out'}")
    commands.train(*command)
    stored = (commands.find_run(tmp_path / "out", "*") / "config.yaml").read_text()
    assert yaml.safe_load(train("--cfg", "job", "--resolve", *tiny(command)).stdout) == yaml.safe_load(stored)


def test_help_shows_every_option_and_every_choice():
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
    for key, field in options:
        assert field.metadata["help"] in lines[key]
        assert all(choice in lines[key] for choice in field.metadata["choices"])
    for file in paths.CONF.glob("*/*.yaml"):
        comments = [c for c in file.read_text().splitlines() if c.startswith("#") and "@package" not in c]
        assert f" {file.stem} " in done.stdout
        assert comments[0].removeprefix("# ") in done.stdout


def test_help_shows_the_values_of_the_command_line():
    done = train("--help", "experiment=polite_helper", "seed=77")
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if len(line.split()) > 1}
    assert rows["seed"] == "77"
    assert rows["model.chat_template"] == "marked"


def test_info_shows_conf_and_the_config_dir(tmp_path):
    done = train("--info", "--config-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert paths.CONF.as_uri() in done.stdout
    assert tmp_path.as_uri() in done.stdout


def test_config_dir_of_recipes_themselves_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("# @package _global_\nseed: 77\n")
    done = train("--config-dir", str(tmp_path), "experiment=mine")
    assert f"--config-dir {tmp_path}: recipes belong in its folder 'experiment'" in done.stderr


def test_config_dir_brings_own_recipes(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 77\n")
    done = train("--config-dir", str(tmp_path), "experiment=mine", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["seed"] == 77


@pytest.mark.parametrize(
    "args, message",
    [
        (["seed=1,2"], "seed=1,2 lists several values: add -m"),
        (["-m", "experiment=glob(zzz*)"], "experiment=glob(zzz*) matches nothing"),
    ],
)
def test_impossible_sweep_is_refused(args, message):
    done = train(*args)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "override, message",
    [
        ("sed=3", "sed=3: there is no option 'sed'. Did you mean 'seed'?"),
        ("experimnt=strictbot", "there is no option 'experimnt'. Did you mean 'experiment'?"),
        ("traking.uri=x", "there is no option 'traking'. Did you mean 'tracking'?"),
        ("adapter.R=4", "there is no option 'adapter.R'"),
        ("+method.foo=1", "+method.foo=1: there is no option 'method.foo'"),
        ("++method.learning_rat=1", "++method.learning_rat=1: there is no option 'method.learning_rat'. Did you mean"),
        ("+foo.bar=1", "+foo.bar=1: there is no option 'foo'"),
        ("study=strictbot", "study=strictbot: there is no option 'study'. Did you mean 'experiment'?"),
        ("quick=true", "quick=true: there is no option 'quick'. Did you mean 'debug=quick'?"),
        ("dataset.train_on=all", "there is no option 'dataset.train_on'. Did you mean 'dataset.loss_roles'?"),
        ("method.learning_rate=fast", "method.learning_rate=fast: Value 'fast'"),
        ("method.max_length=1e3", "method.max_length=1e3: Value '1000.0' of type 'float' could not be converted"),
        ("preview=perhaps", "preview=perhaps: Value 'perhaps' is not a valid bool"),
        ("model.name=null", "model.name=null"),
        ("dataset.sample_types=conversation", "dataset.sample_types=conversation"),
        ("adapter.kind=lor", "adapter.kind=lor is not a choice. Did you mean 'lora'?"),
        ("dataset.on_invalid_row=ignore", "dataset.on_invalid_row=ignore is not a choice. Known: raise, skip."),
        ("model=tinny", "model=tinny: no 'tinny' in model. Did you mean 'tiny'?"),
        ("experiment=strictbt", "experiment=strictbt: no 'strictbt' in experiment. Did you mean 'strictbot'?"),
        ("experiment=[strictbt]", "no 'strictbt' in experiment. Did you mean 'strictbot'?"),
        ("model=[[a]]", "can only concatenate str"),
        ("debug=quik", "debug=quik: no 'quik' in debug. Did you mean 'quick'?"),
        ("seed=${nope}", "seed=${nope}: Interpolation key 'nope' not found"),
        ("dataset=jsonl", "dataset.path has no value, and there is no default: set dataset.path=VALUE."),
        ("nonsense", "'nonsense' is no option: options are written KEY=VALUE."),
        ("dataset.path=epoch=3.jsonl", """Write 'dataset.path="epoch=3.jsonl"'"""),
        ("dataset.path=x[1].jsonl", """Write 'dataset.path="x[1].jsonl"'"""),
        ("dataset.path=a,b.jsonl", """add -m to run one job for each; as one text, write 'dataset.path="a,b.jsonl"'"""),
        ("policy_run_overrides=[a=1,b=2]", """Write 'policy_run_overrides=['"'"'a=1'"'"', '"'"'b=2'"'"']'"""),
        ("policy_run_overrides=[a=1,b=[2,3]]", """Write 'policy_run_overrides=['"'"'a=1'"'"', '"'"'b=[2,3]'"'"']'"""),
        ("policy_from=None", "policy_from=None would be the text 'None': write policy_from=none."),
        ("run_name=None", "run_name=None would be the text 'None': write run_name=null."),
        ("dataset.max_rows=None", "For no value write null, not None."),
        ("max_steps=5", "Did you mean 'method.max_steps'?"),
        ("model=/a/folder", "no '/a/folder' in model. A folder or a name on the hub: model.name=/a/folder."),
        ("model=null", "model=null: model is a config group, and needs a choice: bert, gemma3_1b"),
        ("tuned=tiny_stf", "tuned=tiny_stf: there is no such choice. Did you mean 'tiny/sft'? For none: '~tuned'"),
        ("seed=-1", "seed=-1 must be at least 0 and at most 4294967295."),
        ("method.name=ppo", "method.name=ppo cannot be set: choose the method, method=sft."),
        ("~method", "~method: method is a config group, and needs a choice: dpo, kto"),
        ("method.learning_rate=inf", "method.learning_rate=inf must be a finite number."),
        ("model.added_tokens=abc", "model.added_tokens=abc: a list is needed, model.added_tokens=[...]."),
        ("method.max_steps=0", "method.max_steps=0 trains nothing: -1 trains for method.num_train_epochs."),
    ],
)
def test_wrong_override_is_named_with_a_remedy(override, message):
    assert message in error_of(override)


@pytest.mark.parametrize(
    "text, message",
    [
        ("method: {learning_rte: 1}", "there is no option 'method.learning_rte'. Did you mean 'method.learning_rate'?"),
        ("dataset: {score_above: 1}", "option 'dataset.score_above'. Did you mean 'dataset.min_score_quantile'?"),
        ("sed: 3", "there is no option 'sed'. Did you mean 'seed'?"),
        ("method: {learning_rate: fast}", "method.learning_rate: Value 'fast' of type 'str' could not be converted"),
        ("defaults: [{override /model: tinny}]", "no 'tinny' in model. Did you mean 'tiny'?"),
        ("seed: ${nope}", "seed: Interpolation key 'nope' not found"),
        ("method: [1\n  - : {", "not valid yaml"),
        ("seed: 1\nseed: 2", "found duplicate key seed"),
        ("- seed", "names with values are needed"),
        ("method: 3", "int is not"),
        ("method: {max_length: 4}", "method.max_length=4 must be at least 8"),
        ("method: {name: ppo}", "method.name=ppo cannot be set"),
    ],
)
def test_mistake_in_a_recipe_is_named_with_its_file(recipe, text, message):
    error, path = recipe(text)
    assert message in error
    assert str(path) in error


def test_recipe_without_its_package_line_is_named(tmp_path):
    path = tmp_path / "experiment" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("seed: 3\n")
    error = error_of("experiment=mine", config_dir=str(tmp_path))
    assert error == f"{path}: a recipe begins with the line '# @package _global_', else its options are of a group."


@pytest.mark.parametrize(
    "args, message",
    [
        (
            ["--learning_rate", "1e-4"],
            "--learning_rate: options are written without dashes, KEY=VALUE: method.l",
        ),
        (["--seed=3"], "--seed=3: options are written without dashes, KEY=VALUE: seed=3."),
        (["--helpp", "plan=true"], "--helpp: options are written without dashes, KEY=VALUE: helpp=VALUE."),
        (["+method.rewards={we$rd #1?: {}}"], "cannot be read: names in {…} have letters, digits and _,"),
        (["method.max_steps", "5"], "'method.max_steps' is no option: options are written KEY=VALUE: method.max_ste"),
        (["model=tiny", "-m", "seed=1,2"], "seed=1,2: flags such as -m stand before all options, or after them"),
        (['output_dir="~nobody-here"'], "output_dir=~nobody-here: there is no such user."),
        (["hardware.accelerator=cpu", "hardware.precision=fp16"], "fp16 training on cpu loses small gradients"),
        (["model.added_tokens=['']"], "model.added_tokens has an empty text"),
        (["--config-dir", "no/such/folder"], "--config-dir no/such/folder: there is no such folder."),
    ],
)
def test_option_in_another_form_is_shown_as_it_works(monkeypatch, args, message):
    monkeypatch.setattr(sys, "argv", ["train.py", *args])
    with pytest.raises(SystemExit) as end:
        main("train", print)
    assert message in str(end.value)


def test_recipe_that_is_not_utf8_is_named(recipe):
    error, path = recipe("experiment_name: café", encoding="latin-1")
    assert error.startswith(f"{path}: the file is not UTF-8 text")


def test_override_is_named_for_its_own_typo_not_the_recipe(recipe):
    assert recipe("seed: 3", "+method.foo=1")[0].startswith("+method.foo=1:")


def test_error_in_a_dependency_names_its_command():
    error = error_of("method=ppo", "policy_run_overrides=['method.packng=true']")
    assert error.startswith("the policy run (method=sft method.packng=true): ")
    assert "Did you mean 'method.packing'?" in error


def test_each_value_of_a_sweep_is_validated_first():
    assert "adapter.r=0 must be at least 1" in error_of("adapter.r=4,8,0", "seed=1,2", multirun=True)


@pytest.mark.parametrize("option", ["plan", "preview", "estimate"])
def test_plan_preview_and_estimate_are_about_one_run(option):
    error = f"{option}=true is about one run: leave out -m, and give each option one value."
    assert error_of("seed=1,2", f"{option}=true", multirun=True) == error
    assert "ask for one at a time" in error_of("plan=true", "preview=true", "estimate=true")


def test_key_that_the_space_lacks_is_typed_as_an_option():
    error = error_of("sweep=search", "sweep.space={method.max_length: 'choice(64,128)'}", multirun=True)
    assert error.startswith("sweep.space has no method.max_length: type it as an option of its own, such as 'method.")


def test_valid_sweep_passes():
    register()
    assert check_command_line("train", ["experiment=glob(strictbot*)", "seed=1,2"], multirun=True) is None


@pytest.mark.parametrize("script", ["chat", "evaluate"])
def test_saved_model_scripts_have_specs_without_dependencies(script):
    register()
    spec = check_command_line(script, ["seed=3"], multirun=False)
    assert (spec.cfg.seed, spec.overrides, spec.dependencies) == (3, ["seed=3"], [])
    assert "Did you mean 'reward_from'?" in error_of("reward=none", script=script)


def test_main_hands_the_run_spec_to_the_task(monkeypatch):
    specs = []
    monkeypatch.setattr(sys, "argv", ["train.py", "method=ppo", "seed=5"])
    monkeypatch.setattr("manners.cli.main.signals.handle_sigterm", lambda: None)
    with pytest.raises(SystemExit) as end:
        main("train", specs.append)
    assert end.value.code == 0
    (spec,) = specs
    assert isinstance(spec, RunSpec) and spec.overrides == ["method=ppo", "seed=5"]
    assert [(d.role, d.cfg.method.name, d.cfg.seed) for d in spec.dependencies] == [
        ("policy", "sft", 5),
        ("reward", "reward", 5),
    ]


def test_mac_falls_back_to_the_cpu_unless_the_user_decides(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    for given, expected in ((None, "1"), ("0", "0")):
        if given is None:
            monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
        else:
            monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", given)
        main("train", print)
        assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == expected


@pytest.mark.parametrize(
    "given, expected",
    [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_wait_briefly_unless_the_user_decides(monkeypatch, given, expected):
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    main("train", print)
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_make_names_a_variable_that_it_does_not_have():
    done = subprocess.run(["make", "-n", "export", "TO=folder"], cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "TO: no variable of this Makefile. There are PYTHON," in done.stderr


def test_make_export_pushes_only_what_its_command_names():
    """A HUB in the environment is some other tool's."""

    def command_of(*arguments):
        environment = os.environ | {"HUB": "me/unasked", "GGUF": "f32"}
        done = subprocess.run(
            ["make", "-n", "export", *arguments], cwd=paths.ROOT, capture_output=True, text=True, env=environment
        )
        return " ".join(done.stdout.replace("\\\n", " ").partition("-m manners.export")[2].split())

    assert command_of() == "latest"
    given = command_of("RUN=mine", "GGUF=q8_0", "HUB=me/name", "LLAMA_CPP=llama.cpp")
    assert given == "mine --gguf q8_0 --hub me/name"
