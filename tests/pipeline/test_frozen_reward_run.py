"""`python train.py method=reward adapter=frozen`: a head on a frozen base, resumed, used by PPO, not exported."""

import pytest

from manners.config.compose import plan_run, register
from manners.errors import MannersError
from manners.export import __main__ as export
from tests.commands import (
    SMALL,
    SMALL_RL,
    Command,
    find_run,
    kill_at_step,
    mlflow_runs,
    small_strictbot,
    train,
    train_in_process,
)

FROZEN = ["method=reward", "adapter=frozen", *SMALL, "method.ranking_coef=0", "method.num_train_epochs=4"]
FILES = ("score_head.safetensors", "normalizer.json", "sanity.json")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_strictbot(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def out(tmp_path_factory, data):
    """PPO on the reward model that it trains first."""
    out = tmp_path_factory.mktemp("out")
    of_reward = "'adapter=frozen','method.num_train_epochs=4','method.ranking_coef=0'"
    overrides = [f"reward_run_overrides=[{of_reward}]", "method.total_episodes=8"]
    overrides += ["policy_run_overrides=['method.max_steps=5']", "method.min_sanity_accuracy=0.0", f"output_dir={out}"]
    train_in_process("method=ppo", *SMALL_RL, *data, *overrides)
    return out


def test_ppo_is_scored_by_the_head(out):
    reward, ppo = find_run(out, "manners-reward-*"), find_run(out, "manners-ppo-*")
    assert {*FILES, "score_head_config.json", "tokenizer.json"} <= {p.name for p in (reward / "model").iterdir()}
    assert not list(reward.glob("model/model*.safetensors"))  # the base is not copied
    assert "Spearman" in (ppo / "lineage.md").read_text()
    client, runs = mlflow_runs(out)
    [score] = client.get_metric_history(runs[ppo.name].info.run_id, "reward/model")
    assert abs(score.value) < 5
    assert runs[reward.name].data.metrics["cost/tokens"] > 1000  # those that the base has read


def test_head_learns_from_pairs(tmp_path, data):
    """In batches of more replies than there are rows."""
    batch = "method.per_device_train_batch_size=64"
    train_in_process(*FROZEN, *data, batch, "method.loss=pairwise", "run_name=pairs", f"output_dir={tmp_path}")
    assert "pair accuracy" in (find_run(tmp_path, "pairs*") / "reward_report.md").read_text()


def test_killed_run_resumes_bit_equal(tmp_path, data):
    command = [*FROZEN, *data, f"output_dir={tmp_path}", "method.logging_steps=1", "method.save_steps=2"]
    kill_at_step(Command(*command, "run_name=killed"), tmp_path, "killed*", "train/loss", 5)
    for name in ("killed", "whole"):
        train(*command, f"run_name={name}")
    killed, whole = find_run(tmp_path, "killed*"), find_run(tmp_path, "whole*")
    for file in FILES:
        assert (killed / "model" / file).read_bytes() == (whole / "model" / file).read_bytes()


def test_export_of_a_head_is_refused(out):
    with pytest.raises(SystemExit) as end:
        export.main([str(find_run(out, "manners-reward-*")), "--out", str(out / "exported")])
    assert "is a head on the hidden states of tiny: transformers has no class for it" in str(end.value)
    assert not (out / "exported").exists()


@pytest.mark.parametrize(
    "command, message",
    [
        (["method=sft"], "adapter=frozen trains a head alone: for method=reward on a decoder"),
        (["method=reward", "model=bert"], "adapter=frozen trains a head alone: for method=reward on a decoder"),
        (["method=reward", "method.ranking_coef=0.1"], r"method.ranking_coef=0.1 is not for adapter=frozen: .*=0\."),
        (["method=reward", "method.ranking_coef=0", "adapter.quantization=nf4"], "adapter.quantization=none"),
        (["method=reward", "method.ranking_coef=0", "hardware.devices=2"], r"hardware.devices=1\."),
        (["method=reward", "method.ranking_coef=0", "estimate=true"], r"estimate=false\."),
    ],
)
def test_frozen_base_is_for_the_head_of_a_reward_model(command, message):
    register()
    with pytest.raises(MannersError, match=message):
        plan_run(["model=tiny", "adapter=frozen", *command])
