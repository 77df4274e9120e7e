"""The runs that PPO, DPO and KTO start from: their commands, and what is refused before torch is imported."""

import os
import subprocess
import sys
from dataclasses import fields

import pytest

from manners.cli.main import check_command_line
from manners.config.compose import compose, plan_run, register
from manners.config.schema import DPOConfig, PPOConfig, SFTConfig
from manners.errors import MannersError
from manners.runtime import paths
from tests.configs import tiny

FEW_ROWS = "dataset.max_rows=64"


def train(*args):
    return subprocess.run(
        [sys.executable, "train.py", *args],
        cwd=paths.ROOT,
        env=os.environ | {"COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(autouse=True)
def registered():
    register()


def dependencies_of(*overrides):
    """The runs that a command starts from, by role."""
    return {spec.role: spec for spec in plan_run(list(overrides)).dependencies}


def error_of(*overrides):
    with pytest.raises(MannersError) as error:
        check_command_line("train", tiny(overrides), multirun=False)
    return str(error.value)


# --- The commands of the dependencies ---


def test_ppo_starts_from_an_sft_run_and_a_reward_run():
    for method in ("ppo", "rloo"):
        specs = dependencies_of(f"method={method}")
        assert [specs[role].cfg.method.name for role in ("policy", "reward")] == ["sft", "reward"]
        assert all(spec.explicit_source == "" for spec in specs.values())


def test_sft_and_reward_runs_have_no_dependencies():
    for overrides in (["method=sft"], ["method=reward"], ["method=reward", "method.loss=pairwise"]):
        assert dependencies_of(*overrides) == {}


@pytest.mark.parametrize("method", ["method=dpo", "method=kto"])
def test_dpo_and_kto_start_from_the_same_sft_run_as_ppo(method):
    specs = dependencies_of("model=tiny", method, FEW_ROWS)
    assert specs.keys() == {"policy"}
    assert specs["policy"].cfg == dependencies_of("model=tiny", "method=ppo", FEW_ROWS)["policy"].cfg
    assert dependencies_of("model=tiny", method, "policy_from=none") == {}
    assert dependencies_of("model=tiny", method, "policy_from=a-run")["policy"].explicit_source == "a-run"


def test_dependency_takes_over_the_overrides_but_the_methods():
    not_shared = [
        "method.learning_rate=9",
        "plan=true",
        "run_name=mine",
        "policy_from=auto",
        "reward_from=auto",
    ]
    not_shared += ["policy_run_overrides=[]", "reward_run_overrides=[]"]
    specs = dependencies_of(
        "method=ppo", "seed=7", FEW_ROWS, "adapter.r=3", "experiment_name=s", "evaluation.prompts=2", *not_shared
    )
    for role, method in (("policy", "sft"), ("reward", "reward")):
        spec = specs[role]
        shared = ["seed=7", FEW_ROWS, "adapter.r=3", "experiment_name=s", "evaluation.prompts=2", f"method={method}"]
        assert spec.overrides[: len(shared)] == shared
        cfg = spec.cfg
        assert (cfg.seed, cfg.dataset.max_rows, cfg.adapter.r, cfg.experiment_name) == (7, 64, 3, "s")
        assert (cfg.run_name, cfg.plan, cfg.preview) == (None, False, False)
        assert cfg.method.learning_rate < 1


def test_dependency_equals_its_own_command():
    """So a run that was trained by `python train.py method=sft ...` is found."""
    overrides = ["method=ppo", FEW_ROWS, "seed=3", "policy_run_overrides=['method.max_steps=9']"]
    for spec in dependencies_of(*overrides).values():
        assert spec.cfg == compose("train", spec.overrides)


def test_run_overrides_replace_those_of_the_command():
    specs = dependencies_of(
        "method=ppo",
        "seed=3",
        "adapter.r=4",
        "policy_run_overrides=['seed=5','method.max_steps=9']",
        "reward_run_overrides=['adapter.r=2']",
    )
    policy, reward = specs["policy"].cfg, specs["reward"].cfg
    assert (policy.seed, policy.adapter.r, policy.method.max_steps) == (5, 4, 9)
    assert (reward.seed, reward.adapter.r, reward.method.max_steps) == (3, 2, -1)
    assert "seed=3" not in specs["policy"].overrides and "adapter.r=4" not in specs["reward"].overrides


def test_run_overrides_with_a_model_drop_the_commands_model():
    specs = dependencies_of(
        "method=ppo", "model=gpt2", "model.revision=abc", FEW_ROWS, "reward_run_overrides=['model=bert']"
    )
    reward, policy = specs["reward"], specs["policy"]
    assert not [o for o in reward.overrides if o.startswith("model.") or o == "model=gpt2"]
    assert (reward.cfg.model.name, reward.cfg.model.revision) == ("google-bert/bert-base-uncased", None)
    assert reward.cfg.dataset.max_rows == 64
    assert (policy.cfg.model.name, policy.cfg.model.revision) == ("openai-community/gpt2", "abc")


def test_run_overrides_with_a_dataset_drop_the_commands_dataset(tmp_path):
    file = tmp_path / "polite.csv"
    file.write_text("Community,Id,Request\n" + "x\n" * 30)
    override = f"reward_run_overrides=['dataset=stanford_politeness','dataset.path={file}']"
    reward = dependencies_of("method=ppo", "dataset.max_rows=20", override)["reward"]
    assert (reward.cfg.dataset.path, reward.cfg.dataset.max_rows) == (str(file), None)


# --- Explicit sources, and runs that are not needed ---

FUNCTION_ONLY = ("~method.rewards.model", "+method.rewards.short={_target_:manners.rewards.functions.brevity,words:5}")


def test_none_needs_no_run_and_explicit_sources_are_kept(tmp_path):
    assert dependencies_of("method=ppo", "policy_from=none").keys() == {"reward"}
    assert dependencies_of("method=ppo", "reward_from=none", *FUNCTION_ONLY).keys() == {"policy"}
    assert dependencies_of("method=ppo", "policy_from=none", "reward_from=none", *FUNCTION_ONLY) == {}
    specs = dependencies_of("method=ppo", f"policy_from={tmp_path}", "reward_from=a-run")
    assert (specs["policy"].explicit_source, specs["reward"].explicit_source) == (str(tmp_path), "a-run")


def test_given_runs_are_not_composed_and_need_no_data():
    """polite_helper has no scored rows, and needs none where the reward model is given."""
    specs = dependencies_of("method=ppo", "dataset=polite_helper", "policy_from=a", "reward_from=b")
    assert {role: spec.explicit_source for role, spec in specs.items()} == {"policy": "a", "reward": "b"}
    assert all(spec.cfg.dataset.path == "package:polite_helper/train.jsonl" for spec in specs.values())
    error = error_of("method=ppo", "dataset=oasst1", "policy_from=a")
    assert error.startswith("the reward run (model=tiny dataset=oasst1 method=reward")
    assert error_of("method=ppo", "reward_from=b", "policy_run_overrides=['adapter=nope']").startswith("the policy run")


def test_given_run_that_does_not_exist_is_refused_before_torch(tmp_path):
    """And before the SFT run is trained, which would come first."""
    process = train("method=ppo", "reward_from=nowhere", f"output_dir={tmp_path}")
    assert process.returncode == 1 and "loading torch" not in process.stdout
    assert process.stderr.startswith("error: reward_from=nowhere is neither a folder with a model nor a finished run.")


def reward_of(*overrides):
    return plan_run(["method=ppo", *overrides]).cfg.method.rewards


def test_dict_of_rewards_replaces_the_reward_model():
    whole = "method.rewards={short: {_target_: my.f}, long: {weight: 2, _target_: my.g}}"
    assert reward_of(whole) == {"short": {"_target_": "my.f"}, "long": {"weight": 2, "_target_": "my.g"}}
    assert reward_of("~method.rewards.model", whole).keys() == {"short", "long"}
    assert reward_of(whole, "method.rewards.long.weight=3").long.weight == 3
    assert reward_of("method.rewards={model: {weight: 2}}") == {"model": {"weight": 2}}
    added = reward_of("+method.rewards.short={_target_: my.f}")  # a plus adds
    assert added.keys() == {"model", "variety", "known_words", "short"}
    spec = plan_run(["method=ppo", whole])
    assert [need.role for need in spec.dependencies] == ["policy"]
    assert spec.overrides == ["method=ppo", whole]  # as it was typed


def test_dict_of_rewards_replaces_those_of_a_recipe(tmp_path):
    (tmp_path / "experiment").mkdir()
    recipe = "# @package _global_\ndefaults:\n  - override /method: ppo\nmethod: {rewards: {a: {_target_: f}}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(recipe)
    register(str(tmp_path))
    assert compose("train", ["experiment=mine"]).method.rewards.keys() == {"model", "variety", "known_words", "a"}
    assert compose("train", ["experiment=mine", "method.rewards={b: {_target_: g}}"]).method.rewards.keys() == {"b"}
    register()


def test_reward_functions_alone_need_no_reward_model():
    assert dependencies_of("method=ppo", *FUNCTION_ONLY).keys() == {"policy"}
    assert dependencies_of("method=ppo", FUNCTION_ONLY[1]).keys() == {"policy", "reward"}


# --- Refused before torch is imported ---


def test_mistake_in_a_dependency_is_reported_at_once():
    process = train("method=ppo", "reward_run_overrides=['adapter=nope']")
    assert process.returncode == 1 and "Traceback" not in process.stderr and "loading torch" not in process.stdout
    assert process.stderr.startswith("error: the reward run (method=reward adapter=nope): ")
    assert "no 'nope' in adapter." in process.stderr


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["policy_run_overrides=['method.learning_rat=1']"], "Did you mean 'method.learning_rate'?"),
        (
            ["policy_run_overrides=['method.max_steps=0']"],
            "the policy run (model=tiny dataset=strictbot_tiny method=sft method.max_steps=0)",
        ),
        (["reward_run_overrides=['method.total_episodes=8']"], "there is no option 'method.total_episodes'"),
        (
            ["dataset=oasst1"],
            "the reward run (model=tiny dataset=oasst1 method=reward adapter=none): method",
        ),
        (["method.batch_size=12", "method.num_mini_batches=16"], "num_mini_batches=16 is more than batch_size=12"),
        (["adapter=none", "method.critic=adapter"], "method.critic=adapter needs a LoRA policy: adapter=lora"),
        (["adapter=qlora"], "adapter=lora, or policy_from=none to start from the base itself"),
        (["model=bert"], "is an encoder and cannot write replies: method=ppo needs a decoder"),
        (["method.kl_estimator=k3"], "there is no option 'method.kl_estimator'."),
        (["method.total_episodes=0"], "method.total_episodes=0 must be at least 1."),
        (["method.learning_rate=nan"], "method.learning_rate=nan must be a finite number."),
        (["method.reward_clip=-1"], "method.reward_clip=-1.0 must be at least 0."),
        (["method.rewards.model=null"], "method.rewards={} names no component"),
        (["method.rewards=3"], "method.rewards=3 names no component"),
        (["~method.rewards.model"], "method.rewards={} names no component"),
        (["reward_from=none"], "reward_from=none, and method.rewards.model names no function: add a component with +"),
        (
            ["method.rewards.short={weight:2}"],
            "the reward has no component 'short' yet: a plus adds it, +method.rewards.s",
        ),
    ],
)
def test_impossible_ppo_run_is_refused_with_a_remedy(overrides, message):
    assert message in error_of("method=ppo", *overrides)


def test_rloo_batch_must_be_a_multiple_of_num_generations():
    message = error_of("method=rloo", "method.batch_size=10", "method.num_generations=4")
    assert "method.batch_size=10 must be a multiple of num_generations=4." in message
    assert "method.num_generations=1 must be at least 2." in error_of("method=rloo", "method.num_generations=1")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["dataset=oasst1"],
            "method=dpo needs 'preference' samples, and OpenAssistant/oasst1 offers conversation",
        ),
        (["reward_from=some-run"], "reward_from=some-run: method=dpo starts from a policy alone."),
        (["adapter=qlora"], "adapter=lora, or policy_from=none to start from the base itself"),
        (["model=bert"], "is an encoder and cannot write replies: method=dpo needs a decoder"),
        (["method.loss_type=dpo"], "method.loss_type=dpo is not a choice."),
        (["method.beta=0"], "method.beta=0.0 must be at least 0.001."),
        (["method.max_steps=0"], "method.max_steps=0 trains nothing"),
        (
            ["policy_run_overrides=['method.max_steps=0']"],
            "the policy run (model=tiny dataset=strictbot_tiny method=sft method.max_steps=0)",
        ),
    ],
)
def test_impossible_dpo_run_is_refused_with_a_remedy(overrides, message):
    assert message in error_of("method=dpo", *overrides)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["method.per_device_train_batch_size=1"], "method.per_device_train_batch_size=1 must be at least 2."),
        (["hardware.microbatch_size=4"], "make it smaller by method.per_device_train_batch_size=4, with more"),
        (["hardware.devices=2"], "method=kto trains in one process: hardware.devices=1."),
        (["dataset=oasst1"], "method=kto needs 'unpaired_preference' samples, and OpenAssistant/oasst1 offers conver"),
        (["reward_from=some-run"], "reward_from=some-run: method=kto starts from a policy alone."),
        (["method.loss_type=kto"], "there is no option 'method.loss_type'"),
        (["method.undesirable_weigth=2"], "Did you mean 'method.undesirable_weight'?"),
    ],
)
def test_impossible_kto_run_is_refused_with_a_remedy(overrides, message):
    assert message in error_of("method=kto", *overrides)


def test_policy_from_is_refused_for_sft_and_reward():
    for method in ("sft", "reward"):
        message = error_of(f"method={method}", "policy_from=some-run")
        assert f"policy_from=some-run: method={method} starts from the base model, not from a run." in message
        assert "reward_from=x" in error_of(f"method={method}", "reward_from=x")


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=rloo"],
        ["method=rloo", "method.batch_size=12", "method.num_generations=3"],
        ["method=ppo", "policy_from=none", "adapter=qlora"],
        ["method=ppo", "adapter=none"],
        ["method=ppo", "method.critic=adapter"],
        ["method=dpo", "adapter=none"],
        ["method=dpo", "policy_from=none", "adapter=qlora"],
        ["method=kto", "adapter=none"],
        ["method=kto", "hardware.microbatch_size=32"],
    ],
)
def test_possible_online_rl_and_preference_runs_pass(overrides):
    assert check_command_line("train", overrides, multirun=False) is not None


# --- Tuned values ---


def test_tuned_values_apply_and_the_command_line_wins():
    assert compose("train", ["model=tiny"]).method.learning_rate == 2e-3
    assert compose("train", ["model=gpt2"]).method.learning_rate == SFTConfig().learning_rate
    assert compose("train", ["model=tiny", "method.learning_rate=3e-3"]).method.learning_rate == 3e-3
    recipe = compose("train", ["experiment=strictbot_sft"])  # of another model
    assert recipe.method.learning_rate != 2e-3


def test_tuned_values_apply_to_dependencies_too():
    specs = dependencies_of("model=tiny", "method=ppo")
    assert specs["policy"].cfg.method.learning_rate == 2e-3
    overrides = ["dataset.max_rows=100", "method.max_steps=90"]  # conf/tuned/tiny/ppo.yaml
    assert specs["policy"].overrides == ["model=tiny", "method=sft", *overrides]
    assert specs["reward"].overrides == ["model=tiny", "method=reward", "adapter=none"]
    plain = dependencies_of("model=tiny", "method=ppo", "policy_run_overrides=[]")
    assert plain["policy"].overrides == ["model=tiny", "method=sft"]


@pytest.mark.parametrize("file", sorted(f"{p.parent.name}/{p.stem}" for p in paths.CONF.glob("tuned/*/*.yaml")))
def test_tuned_file_belongs_to_a_model_and_a_method(file):
    model, method = file.split("/")
    method = method.removeprefix("frozen_")  # chosen by name, with adapter=frozen
    assert (paths.CONF / "model" / f"{model}.yaml").exists() and (paths.CONF / "method" / f"{method}.yaml").exists()
    assert dependencies_of(f"model={model}", f"method={method}").keys() in (set(), {"policy"}, {"policy", "reward"})


@pytest.mark.parametrize("schema", [PPOConfig, DPOConfig])
def test_help_explains_every_option_of_the_method(schema):
    process = train("--help", f"method={schema().name}")
    assert process.returncode == 0, process.stderr
    lines = {line.split()[0]: line for line in process.stdout.splitlines() if line.strip()}
    for field in fields(schema):
        assert field.metadata["help"] in lines[f"method.{field.name}"]
    assert "none" in lines["policy_from"] and "policy_run_overrides" in lines
