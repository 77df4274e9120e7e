"""The kinds of PPO: other methods, adapters, critics, rewards and places to start from, as their commands make them."""

import json
import sys

import pytest
from safetensors.torch import load_file

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

ONCE = [*SMALL_RL, "method.total_episodes=8", "method.eval_steps=1", "method.num_ppo_epochs=1"]
TWICE = "method.total_episodes=16"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What each command shares: where runs are kept, and the data. The first trains the SFT and the reward run."""
    return [*small_strictbot(tmp_path_factory.mktemp("data")), f"output_dir={tmp_path_factory.mktemp('out')}"]


@pytest.fixture(scope="module")
def out(world):
    from pathlib import Path

    return Path(world[-1].partition("=")[2])


@pytest.fixture(scope="module")
def go(world, out):
    def go(name, *overrides, method="ppo"):
        train_in_process(f"method={method}", *ONCE, *world, f"run_name={name}", *overrides)
        return find_run(out, f"{name}-*")

    return go


def metrics(folder):
    return {name: value for record in read_records(folder / "metrics.jsonl") for name, value in record.items()}


def test_full_fine_tuning_pays_for_the_distance_to_a_frozen_copy(go):
    """What SFT taught is merged, so the policy is whole weights; it moves, and the copy does not."""
    folder = go("whole", TWICE, "adapter=none", f"policy_run_overrides=['adapter=lora',{SHORT_STAGE}]")
    found = metrics(folder)
    assert (folder / "model" / "model.safetensors").exists()
    assert not (folder / "model" / "adapter_config.json").exists()
    kl = [r["objective/kl_k3"] for r in read_records(folder / "metrics.jsonl") if "objective/kl_k3" in r]
    assert kl[0] == 0 < kl[1] and found["policy/approxkl_avg"] > 0
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(folder / "model").config.vocab_size > 0


def test_rloo_has_no_critic(go):
    found = metrics(go("rloo", method="rloo"))
    assert found["loss/value_avg"] == 0 and found["policy/approxkl_avg"] > 0


def test_a_critic_on_an_adapter_of_its_own_is_not_saved(go):
    folder = go("critic", "method.critic=adapter", "method.value_learning_rate=1e-3")
    assert metrics(folder)["loss/value_avg"] > 0
    assert not [key for key in load_file(folder / "model" / "adapter_model.safetensors") if "critic" in key]
    assert not [p for p in (folder / "model").iterdir() if p.is_dir()]


MINE = """
def shouts(completions, weight_of_a_mark=1.0, **columns):
    return [weight_of_a_mark * c[0]["content"].count("!") for c in completions]

def by_row(prompts, completions, category, ended, completion_ids, **columns):
    assert len(prompts) == len(category) == len(ended) == len(completion_ids)
    return [float(kind == "wrong_fact") for kind in category]
"""
OWN = [
    "+method.rewards.loud={weight:0.5,_target_:my_rewards.shouts,weight_of_a_mark:2.0}",
    "+method.rewards.row={weight:2.0,_target_:my_rewards.by_row}",
]


@pytest.fixture
def my_rewards(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(MINE)
    yield tmp_path
    sys.modules.pop("my_rewards", None)
    while str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def test_a_users_own_rewards_act_beside_the_model_and_each_is_logged(go, my_rewards, monkeypatch):
    """The module lies where the command is typed."""
    monkeypatch.chdir(my_rewards)
    folder = go("native", TWICE, *OWN, "method.missing_eos_penalty=0")
    for record in read_records(folder / "metrics.jsonl"):
        if "objective/scores" in record:
            parts = record["reward/model"] + 0.5 * record["reward/loud"] + 2 * record["reward/row"]
            assert record["objective/scores"] == pytest.approx(parts, abs=1e-5)
            assert 0 <= record["reward/row"] <= 1
        if "eval/scores" in record:
            assert {"eval/reward_model", "eval/reward_loud", "eval/reward_row"} <= record.keys()


def test_a_module_on_pythonpath_pays_alone_by_the_command(world, out, my_rewards):
    rules = ["~method.rewards.model", OWN[0], "policy_from=none", "run_name=path"]
    train("method=ppo", *ONCE, *world, *rules, PYTHONPATH=str(my_rewards))
    folder = find_run(out, "path-*")
    found = metrics(folder)
    assert "reward/loud" in found and "reward/model" not in found
    assert (folder / "lineage.md").read_text().count("\n") == 1  # it came from no run


def test_a_function_that_is_not_there_ends_the_run_before_its_stages_are_trained(tmp_path, world):
    bad = "+method.rewards.mine={_target_:my_rewards_nowhere.shouts}"
    with pytest.raises(MannersError, match=r"method\.rewards\.mine\._target_=my_rewards_nowhere\.shouts cannot be"):
        train_in_process("method=ppo", *ONCE, *world, bad, f"output_dir={tmp_path}", "seed=5")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def auto(go):
    return go("auto")


def test_a_policy_may_be_named_by_folder_or_by_mlflow_id_and_is_then_the_one_that_would_be_found(auto, go, out):
    """The same inputs, hence the same run: each ends in the bytes of the others."""
    sft, judge = find_run(out, "manners-sft-*"), find_run(out, "manners-reward-*")
    _, runs = mlflow_runs(out)
    by_folder = go("by-folder", f"policy_from={sft}", f"reward_from={judge / 'model'}")
    by_id = go("by-id", f"policy_from={runs[sft.name].info.run_id}", f"reward_from={judge.name}")
    weights = [(f / "model" / "adapter_model.safetensors").read_bytes() for f in (auto, by_folder, by_id)]
    assert weights[0] == weights[1] == weights[2]
    for folder in (by_folder, by_id):
        tags = runs_of(out)[folder.name]
        assert tags["manners.policy_run_id"] == runs[sft.name].info.run_id
    assert len(list(out.glob("runs/manners-sft-*"))) == 1


def runs_of(out):
    return {name: run.data.tags for name, run in mlflow_runs(out)[1].items()}


def test_ppo_goes_on_from_ppo(auto, go):
    """Its adapter holds what SFT and PPO taught; a third is added to it."""
    second = go("onward", f"policy_from={auto}")
    ranks = [json.loads((f / "model" / "adapter_config.json").read_text())["r"] for f in (auto, second)]
    assert ranks == [32, 48]


def test_an_unsound_reward_model_is_refused_by_the_command(out, world):
    with pytest.raises(MannersError, match=r"the reward model manners-reward-tiny-\w+ sees through"):
        train_in_process("method=ppo", *ONCE, *world, "method.min_sanity_accuracy=1.0", "run_name=strict")
    assert runs_of(out)[find_run(out, "strict-*").name]["manners.error"].startswith("MannersError: the reward model")
    assert mlflow_runs(out)[1][find_run(out, "strict-*").name].info.status == "FAILED"


def test_a_folder_that_is_no_model_is_refused_without_a_traceback(tmp_path, world):
    command = Command("method=ppo", *ONCE, *world, "policy_from=nowhere", "plan=true", cwd=tmp_path)
    assert command.wait() == 1
    assert command.output.startswith("error: policy_from=nowhere is neither a folder with a model nor a finished run.")
