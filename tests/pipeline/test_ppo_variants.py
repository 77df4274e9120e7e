"""Variants of PPO by their commands: RLOO, full fine-tuning, critics, reward functions, explicit sources."""

import json
import re
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from manners.errors import MannersError
from tests.commands import (
    SHORT_STAGE,
    SMALL_RL,
    Command,
    find_run,
    mlflow_runs,
    read_records,
    small_strictbot,
    train,
    train_in_process,
)

ONE_ITERATION = [*SMALL_RL, "method.total_episodes=8", "method.eval_steps=1", "method.num_ppo_epochs=1"]
TWO_ITERATIONS = "method.total_episodes=16"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The data and the output directory of all commands: the first one trains the SFT and the reward run."""
    return [*small_strictbot(tmp_path_factory.mktemp("data")), f"output_dir={tmp_path_factory.mktemp('out')}"]


@pytest.fixture(scope="module")
def out(shared):
    return Path(shared[-1].partition("=")[2])


@pytest.fixture(scope="module")
def train_variant(shared, out):
    def train_variant(name, *overrides, method="ppo"):
        train_in_process(f"method={method}", *ONE_ITERATION, *shared, f"run_name={name}", *overrides)
        return find_run(out, f"{name}-*")

    return train_variant


def last_metrics(folder):
    """The last value of every metric of a run."""
    return {name: value for record in read_records(folder / "metrics.jsonl") for name, value in record.items()}


def test_full_fine_tuning_has_a_kl_to_a_frozen_reference(train_variant):
    """The SFT adapter is merged into the weights, all of which are trained and saved."""
    folder = train_variant(
        "full", TWO_ITERATIONS, "adapter=none", f"policy_run_overrides=['adapter=lora',{SHORT_STAGE}]"
    )
    values = last_metrics(folder)
    assert (folder / "model" / "model.safetensors").exists()
    assert not (folder / "model" / "adapter_config.json").exists()
    kl = [r["objective/kl_k3"] for r in read_records(folder / "metrics.jsonl") if "objective/kl_k3" in r]
    assert kl[0] == 0 < kl[1] and values["policy/approxkl_avg"] > 0
    assert AutoModelForCausalLM.from_pretrained(folder / "model").config.vocab_size > 0


def test_rloo_trains_without_a_value_loss(train_variant):
    values = last_metrics(train_variant("rloo", method="rloo"))
    assert values["loss/value_avg"] == 0 and values["policy/approxkl_avg"] > 0


def test_critic_adapter_is_trained_and_not_saved(train_variant):
    folder = train_variant("critic", "method.critic=adapter", "method.value_learning_rate=1e-3")
    assert last_metrics(folder)["loss/value_avg"] > 0
    assert not [key for key in load_file(folder / "model" / "adapter_model.safetensors") if "critic" in key]
    assert not [p for p in (folder / "model").iterdir() if p.is_dir()]


def test_dora_on_a_dora_is_saved_as_whole_weights(train_variant, out):
    """The SFT run that is trained for it is one adapter."""
    folder = train_variant("dora", "adapter.use_dora=true", TWO_ITERATIONS)
    start = Path(json.loads((folder / "run.json").read_text())["dependencies"]["policy"])
    assert any("lora_magnitude_vector" in name for name in load_file(start / "adapter_model.safetensors"))
    assert (folder / "model" / "model.safetensors").exists() and not (folder / "model" / "adapter_config.json").exists()
    values = last_metrics(folder)
    assert values["policy/approxkl_avg"] > 0 and values["objective/kl_k3"] > 0
    explicit = train_variant("lora-on-dora", f"policy_from={start.parent}", "policy_run_overrides=[]")
    assert (explicit / "model" / "model.safetensors").exists()


USER_MODULE = """
def exclamation_marks(completions, points=1.0, **columns):
    return [points * c[0]["content"].count("!") for c in completions]

def is_wrong_fact(prompts, completions, category, has_eos, completion_ids, **columns):
    assert len(prompts) == len(category) == len(has_eos) == len(completion_ids)
    return [float(name == "wrong_fact") for name in category]
"""
USER_REWARDS = [
    "+method.rewards.loud={weight:0.5,_target_:my_rewards.exclamation_marks,points:2.0}",
    "+method.rewards.category={weight:2.0,_target_:my_rewards.is_wrong_fact}",
]


@pytest.fixture
def my_rewards(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(USER_MODULE)
    yield tmp_path
    sys.modules.pop("my_rewards", None)
    while str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def test_user_rewards_add_to_the_model_and_are_logged(train_variant, my_rewards, monkeypatch):
    """The module is in the working directory."""
    monkeypatch.chdir(my_rewards)
    folder = train_variant("own-rewards", TWO_ITERATIONS, *USER_REWARDS, "method.missing_eos_penalty=0")
    for record in read_records(folder / "metrics.jsonl"):
        if "objective/scores" in record:
            total = record["reward/model"] + 0.5 * record["reward/loud"] + 2 * record["reward/category"]
            assert record["objective/scores"] == pytest.approx(total, abs=1e-5)
            assert 0 <= record["reward/category"] <= 1
        if "eval/scores" in record:
            assert {"eval/reward_model", "eval/reward_loud", "eval/reward_category"} <= record.keys()


def test_user_reward_on_pythonpath_replaces_the_model(shared, out, my_rewards):
    overrides = ["~method.rewards.model", USER_REWARDS[0], "policy_from=none", "run_name=path"]
    train("method=ppo", *ONE_ITERATION, *shared, *overrides, PYTHONPATH=str(my_rewards))
    folder = find_run(out, "path-*")
    values = last_metrics(folder)
    assert "reward/loud" in values and "reward/model" not in values
    assert (folder / "lineage.md").read_text().count("\n") == 1  # it has no dependencies


OWN_REWARD = """
def short(completions, log_metric, log_extra, trainer_state, **kwargs):
    words = [len(c[0]["content"].split()) for c in completions]
    log_metric("words", sum(words) / len(words))
    log_extra("words", words)
    return [-n / 4 if n else None for n in words]

def broken(completions, **kwargs):
    return {"score": [1.0 for _ in completions]}
"""


def test_own_function_alone_is_the_reward_in_its_own_unit(train_variant, my_rewards, monkeypatch):
    """One override: no reward model is trained, and nothing is reported as standard deviations."""
    (my_rewards / "my_rewards.py").write_text(OWN_REWARD)
    monkeypatch.chdir(my_rewards)
    folder = train_variant("short", "method.rewards={short: {_target_: my_rewards.short}}")
    values = last_metrics(folder)
    assert {"reward/short", "words", "eval/words", "eval/scores_stderr", "after/reward"} <= values.keys()
    assert "reward/model" not in values
    report = (folder / "before_after.md").read_text()
    assert "| reward |" in report and "| reward of sampled replies |" in report and "standard deviations" not in report
    summary = json.loads((folder / "run.json").read_text())["summary"]
    assert report.splitlines()[2] == f"{summary}."


@pytest.mark.parametrize(
    "target, message",
    [
        ("my_rewards.broken", r"method\.rewards\.mine returned \{'score': .*: it must return a list with one number"),
        ("builtins.len", r"method\.rewards\.mine failed: TypeError: len\(\) takes no keyword arguments"),
    ],
)
def test_reward_that_returns_no_scores_fails_before_training(
    tmp_path, shared, my_rewards, monkeypatch, target, message
):
    (my_rewards / "my_rewards.py").write_text(OWN_REWARD)
    monkeypatch.chdir(my_rewards)
    with pytest.raises(MannersError, match=message):
        train_in_process(
            "method=ppo", *ONE_ITERATION, *shared, f"method.rewards={{mine: {{_target_: {target}}}}}",
            f"output_dir={tmp_path / 'out'}", "seed=5",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_missing_reward_function_fails_before_dependencies(tmp_path, shared):
    override = "+method.rewards.mine={_target_:my_rewards_nowhere.f}"
    with pytest.raises(MannersError, match=r"method\.rewards\.mine\._target_=my_rewards_nowhere\.f cannot be"):
        train_in_process("method=ppo", *ONE_ITERATION, *shared, override, f"output_dir={tmp_path}", "seed=5")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def auto(train_variant):
    return train_variant("auto")


def test_explicit_sources_make_the_same_run_as_found_ones(auto, train_variant, out):
    """By folder, and by MLflow run id and name: the weights are bit-equal."""
    found, before = json.loads((auto / "run.json").read_text())["dependencies"], set(out.glob("runs/manners-*"))
    sft, reward = Path(found["policy"]).parent, Path(found["reward"]).parent
    _, runs = mlflow_runs(out)
    by_folder = train_variant("by-folder", f"policy_from={sft}", f"reward_from={reward / 'model'}")
    by_id = train_variant("by-id", f"policy_from={runs[sft.name].info.run_id}", f"reward_from={reward.name}")
    weights = [(f / "model" / "adapter_model.safetensors").read_bytes() for f in (auto, by_folder, by_id)]
    assert weights[0] == weights[1] == weights[2]
    for folder in (by_folder, by_id):
        tags = mlflow_runs(out)[1][folder.name].data.tags
        assert tags["manners.policy_run_id"] == runs[sft.name].info.run_id
    assert set(out.glob("runs/manners-*")) == before


def test_ppo_continues_from_a_ppo_run(auto, train_variant):
    """Its adapter is SFT's and PPO's; a third is added."""
    second = train_variant("second", f"policy_from={auto}")
    ranks = [json.loads((f / "model" / "adapter_config.json").read_text())["r"] for f in (auto, second)]
    assert ranks == [32, 48]


@pytest.mark.parametrize("further", [["method.learning_rate=1e-4"], ["plan=true"]], ids=["run", "plan"])
def test_command_refuses_a_reward_model_that_fails_sanity(out, shared, further):
    """One that is there already is refused before anything is trained."""
    before = set(out.glob("runs/*"))
    strict = ["method.min_sanity_accuracy=1.0", "policy_run_overrides=['method.max_steps=3']"]
    command = Command("method=ppo", *ONE_ITERATION, *shared, *strict, *further)
    assert command.wait() == 1
    assert re.search(r"^error: the reward model manners-reward-tiny-\w+ has a sanity accuracy", command.output, re.M)
    assert set(out.glob("runs/*")) == before


def test_source_that_is_no_model_is_refused(tmp_path, shared):
    command = Command("method=ppo", *ONE_ITERATION, *shared, "policy_from=nowhere", "plan=true", cwd=tmp_path)
    assert command.wait() == 1
    assert command.output.startswith("error: policy_from=nowhere is neither a folder with a model nor a finished run.")
