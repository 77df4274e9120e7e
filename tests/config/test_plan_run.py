"""The runs that PPO starts from: which commands make them, and what is refused before anything heavy is imported."""

import os
import subprocess
import sys
import time
from dataclasses import fields

import pytest

from manners.cli.main import check_command_line, quoting_hint
from manners.config.compose import compose, plan_dependencies, register
from manners.config.schema import DPOConfig, PPOConfig, SFTConfig
from manners.errors import MannersError
from manners.runtime import paths

FEW = "dataset.max_rows=64"


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
def hydra_here():
    import hydra

    register()
    with hydra.initialize_config_dir(str(paths.CONF), version_base="1.3"):
        yield


def needs(*overrides):
    """The stages of a command, by role."""
    found = plan_dependencies(compose("train", list(overrides)), list(overrides))
    return {stage.role: stage for stage in found}


def refusal(*overrides):
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with pytest.raises(MannersError) as caught:
        check_command_line("train", list(overrides), multirun=False)
    return str(caught.value)


# --- The commands of the stages ---


def test_ppo_starts_from_an_sft_run_and_a_reward_run_and_those_from_nothing():
    for method in ("ppo", "rloo"):
        found = needs(f"method={method}")
        assert [found[role].cfg.method.name for role in ("policy", "reward")] == ["sft", "reward"]
        assert all(stage.explicit_source == "" for stage in found.values())
    assert needs("method=sft") == needs("method=reward") == needs("method=reward", "method.loss=pairwise") == {}


def test_dpo_starts_from_the_very_sft_run_that_ppo_starts_from_and_needs_no_reward_model():
    found = needs("method=dpo", FEW)
    assert found.keys() == {"policy"}
    assert found["policy"].cfg == needs("method=ppo", FEW)["policy"].cfg
    assert needs("method=dpo", "policy_from=none") == {}
    assert needs("method=dpo", "policy_from=a-run")["policy"].explicit_source == "a-run"


def test_the_commands_overrides_are_carried_over_less_the_methods_own():
    own = [
        "method.learning_rate=9",
        "plan=true",
        "preview=true",
        "run_name=mine",
        "policy_from=auto",
        "reward_from=auto",
    ]
    own += ["policy_run_overrides=[]", "reward_run_overrides=[]"]
    found = needs("method=ppo", "seed=7", FEW, "adapter.r=3", "experiment_name=s", "evaluation.prompts=2", *own)
    for role, method in (("policy", "sft"), ("reward", "reward")):
        stage = found[role]
        shared = ["seed=7", FEW, "adapter.r=3", "experiment_name=s", "evaluation.prompts=2", f"method={method}"]
        assert stage.overrides[: len(shared)] == shared
        cfg = stage.cfg
        assert (cfg.seed, cfg.dataset.max_rows, cfg.adapter.r, cfg.experiment_name) == (7, 64, 3, "s")
        assert (cfg.run_name, cfg.plan, cfg.preview) == (None, False, False)
        assert cfg.method.learning_rate < 1


def test_a_stage_is_what_its_command_makes_by_hand():
    """So what `python train.py method=sft ...` trained by hand is found."""
    for stage in needs("method=ppo", FEW, "seed=3", "policy_run_overrides=['method.max_steps=9']").values():
        assert stage.cfg == compose("train", stage.overrides)


def test_overrides_for_a_stage_replace_those_of_the_command():
    found = needs(
        "method=ppo",
        "seed=3",
        "adapter.r=4",
        "policy_run_overrides=['seed=5','method.max_steps=9']",
        "reward_run_overrides=['adapter.r=2']",
    )
    policy, reward = found["policy"].cfg, found["reward"].cfg
    assert (policy.seed, policy.adapter.r, policy.method.max_steps) == (5, 4, 9)
    assert (reward.seed, reward.adapter.r, reward.method.max_steps) == (3, 2, -1)
    assert "seed=3" not in found["policy"].overrides and "adapter.r=4" not in found["reward"].overrides


def test_another_model_for_a_stage_drops_all_that_the_command_says_of_the_model():
    found = needs("method=ppo", "model=gpt2", "model.revision=abc", FEW, "reward_run_overrides=['model=bert']")
    reward, policy = found["reward"], found["policy"]
    assert not [o for o in reward.overrides if o.startswith("model.") or o == "model=gpt2"]
    assert (reward.cfg.model.name, reward.cfg.model.revision) == ("google-bert/bert-base-uncased", None)
    assert reward.cfg.dataset.max_rows == 64
    assert (policy.cfg.model.name, policy.cfg.model.revision) == ("openai-community/gpt2", "abc")


def test_another_dataset_for_the_reward_model(tmp_path):
    file = tmp_path / "polite.csv"
    file.write_text("Community,Id,Request\n" + "x\n" * 30)
    replaced = f"reward_run_overrides=['dataset=stanford_politeness','dataset.path={file}']"
    reward = needs("method=ppo", "dataset.max_rows=20", replaced)["reward"]
    assert (reward.cfg.dataset.path, reward.cfg.dataset.max_rows) == (str(file), None)


# --- What is given, and what is not needed ---

ONLY_A_RULE = ("~method.rewards.model", "+method.rewards.short={_target_:manners.rewards.combine.brevity,words:5}")


def test_none_needs_no_run_and_a_given_run_is_kept_by_name(tmp_path):
    assert needs("method=ppo", "policy_from=none").keys() == {"reward"}
    assert needs("method=ppo", "reward_from=none", *ONLY_A_RULE).keys() == {"policy"}
    assert needs("method=ppo", "policy_from=none", "reward_from=none", *ONLY_A_RULE) == {}
    found = needs("method=ppo", f"policy_from={tmp_path}", "reward_from=a-run")
    assert (found["policy"].explicit_source, found["reward"].explicit_source) == (str(tmp_path), "a-run")


def test_a_reward_made_of_functions_alone_needs_no_reward_model():
    assert needs("method=ppo", *ONLY_A_RULE).keys() == {"policy"}
    assert needs("method=ppo", ONLY_A_RULE[1]).keys() == {"policy", "reward"}


# --- Refused in about a second ---


def test_a_mistake_within_a_stage_is_told_at_once_with_the_stages_name():
    start = time.time()
    done = train("method=ppo", "reward_run_overrides=['adapter=nope']")
    assert time.time() - start < 20  # about one on a machine that has nothing else to do
    assert done.returncode == 1 and "Traceback" not in done.stderr and "loading torch" not in done.stdout
    assert done.stderr.startswith("error: the reward run (method=reward adapter=nope): ")
    assert "no 'nope' in adapter." in done.stderr


@pytest.mark.parametrize(
    "overrides, says",
    [
        (["policy_run_overrides=['method.learning_rat=1']"], "Did you mean 'method.learning_rate'?"),
        (
            ["policy_run_overrides=['method.max_steps=0']"],
            "the policy run (method=sft method.max_steps=0): there is no",
        ),
        (["reward_run_overrides=['method.total_episodes=8']"], "there is no option 'method.total_episodes'"),
        (
            ["dataset=polite_helper"],
            "the reward run (dataset=polite_helper method=reward adapter=none): method=reward ne",
        ),
        (["method.batch_size=12", "method.num_mini_batches=16"], "num_mini_batches=16 is more than batch_size=12"),
        (["adapter=none", "method.critic=adapter"], "method.critic=adapter needs a LoRA policy: adapter=lora"),
        (["adapter=qlora"], "adapter=lora, or policy_from=none to start from the base itself"),
        (["model=bert"], "is an encoder and cannot write replies: method=ppo needs a decoder"),
        (["method.kl_estimator=k4"], "method.kl_estimator=k4 is not a choice."),
        (["method.total_episodes=0"], "method.total_episodes=0 must be at least 1."),
        (["method.learning_rate=nan"], "method.learning_rate=nan must be at least 0."),
        (["method.reward_clip=-1"], "method.reward_clip=-1.0 must be at least 0."),
        (
            ["method.rewards.model=null"],
            "method.rewards.model=None: a component of the reward is {weight:1.0,_target_:",
        ),
        (["method.rewards=3"], "method.rewards=3 names no component"),
        (["~method.rewards.model"], "method.rewards={} names no component"),
        (["reward_from=none"], "reward_from=none, and method.rewards.model names no function: add a component with +"),
        (
            ["method.rewards.short={weight:2}"],
            "the reward has no component 'short' yet: a plus adds it, +method.rewards.s",
        ),
    ],
)
def test_what_ppo_cannot_do_is_refused_with_what_it_can(overrides, says):
    assert says in refusal("method=ppo", *overrides)


def test_siblings_fill_the_batch_of_rloo():
    said = refusal("method=rloo", "method.batch_size=10", "method.num_generations=4")
    assert "method.batch_size=10 must be a multiple of num_generations=4." in said
    assert "method.num_generations=1 must be at least 2." in refusal("method=rloo", "method.num_generations=1")


@pytest.mark.parametrize(
    "overrides, says",
    [
        (
            ["dataset=polite_helper"],
            "method=dpo needs 'preference' samples, and package:polite_helper/train.jsonl offers conversation",
        ),
        (["reward_from=some-run"], "reward_from=some-run: method=dpo starts from a policy alone."),
        (["adapter=qlora"], "adapter=lora, or policy_from=none to start from the base itself"),
        (["model=bert"], "is an encoder and cannot write replies: method=dpo needs a decoder"),
        (["method.loss_type=dpo"], "method.loss_type=dpo is not a choice."),
        (["method.beta=0"], "method.beta=0.0 must be at least 0.001."),
        (["method.max_steps=0"], "there is nothing to train"),
        (
            ["policy_run_overrides=['method.max_steps=0']"],
            "the policy run (method=sft method.max_steps=0): there is no",
        ),
    ],
)
def test_what_dpo_cannot_do_is_refused_with_what_it_can(overrides, says):
    assert says in refusal("method=dpo", *overrides)


def test_only_ppo_and_dpo_start_from_runs():
    for method in ("sft", "reward"):
        said = refusal(f"method={method}", "policy_from=some-run")
        assert f"policy_from=some-run: method={method} starts from the base model, not from a run." in said
        assert "reward=x" in refusal(f"method={method}", "reward=x")


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
    ],
)
def test_what_works_passes(overrides):
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    assert check_command_line("train", overrides, multirun=False) is not None


# --- What a model wants of a method ---


def test_the_tuned_values_of_a_model_and_method_apply_and_the_command_line_wins():
    tuned = paths.CONF / "tuned" / "tiny" / "sft.yaml"
    assert "learning_rate: 2e-3" in tuned.read_text()
    assert compose("train", []).method.learning_rate == 2e-3
    assert compose("train", ["model=gpt2"]).method.learning_rate == SFTConfig().learning_rate
    assert compose("train", ["method.learning_rate=3e-3"]).method.learning_rate == 3e-3
    its_own = compose("train", ["experiment=strictbot_sft"])  # its model is not the tiny one
    assert its_own.method.learning_rate != 2e-3


def test_tuned_values_reach_the_stages_and_the_command_line_wins_there_too():
    found = needs("method=ppo")
    assert found["policy"].cfg.method.learning_rate == 2e-3
    light = ["dataset.max_rows=100", "method.max_steps=90"]  # conf/tuned/tiny/ppo.yaml
    assert found["policy"].overrides == ["method=sft", *light]
    assert found["reward"].overrides == ["method=reward", "adapter=none"]
    assert needs("method=ppo", "policy_run_overrides=[]")["policy"].overrides == ["method=sft"]


@pytest.mark.parametrize("file", sorted(f"{p.parent.name}/{p.stem}" for p in paths.CONF.glob("tuned/*/*.yaml")))
def test_every_tuned_file_is_of_a_model_and_a_method_that_exist(file):
    model, _, method = file.partition("/")
    assert (paths.CONF / "model" / f"{model}.yaml").exists() and (paths.CONF / "method" / f"{method}.yaml").exists()
    assert needs(f"model={model}", f"method={method}").keys() in (set(), {"policy"}, {"policy", "reward"})


@pytest.mark.parametrize("schema", [PPOConfig, DPOConfig])
def test_help_explains_the_options_of_what_starts_from_runs(schema):
    done = train("--help", f"method={schema().name}")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    for field in fields(schema):
        assert field.metadata["help"] in lines[f"method.{field.name}"]
    assert "none" in lines["policy_from"] and "policy_run_overrides" in lines


def test_an_unquoted_list_of_overrides_is_told_how_to_write_it():
    told = quoting_hint("policy_run_overrides=[method.max_steps=6,seed=2]")
    assert told.endswith("\"policy_run_overrides=['method.max_steps=6', 'seed=2']\"")
