"""`python train.py method=ppo` end to end: three linked runs, reused, resumed, loaded without manners."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from manners.models.reward_model import ScoreNormalizer
from manners.pipeline.model_ref import ModelRef, load_scorer
from manners.pipeline.stages import ppo
from tests.commands import (
    SMALL_RL,
    Command,
    artifact_paths,
    find_run,
    kill_at_step,
    mlflow_runs,
    read_records,
    small_strictbot,
    train,
    train_in_process,
)

ITERATIONS = 5
PPO = [
    "method=ppo",
    *SMALL_RL,
    f"method.total_episodes={8 * ITERATIONS}",
    "method.eval_steps=2",
    "method.save_steps=2",
    "method.log_samples_steps=1",
    "method.log_samples=2",
]
TOKEN_IDS = torch.arange(5, 45)[None]
ADAPTER = "model/adapter_model.safetensors"
ITERATION_METRICS = {
    *(f"objective/{name}" for name in ("kl", "entropy", "non_score_reward", "rlhf_reward", "scores", "length")),
    *("objective/eos_rate", "objective/repeated_bigrams", "policy/stopped_early", "train/learning_rate"),
    *("policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg"),
    *(
        "val/clipfrac_avg",
        "val/ratio",
        "val/explained_variance",
        "val/num_eos_tokens",
        "reward/model",
        "episode",
        "policy/grad_norm",
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_strictbot(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained_logits():
    """The logits of the trained policy before it was saved."""
    return {}


@pytest.fixture(scope="module")
def out(tmp_path_factory, data, trained_logits):
    """The output directory of the command, which trains the dependencies first."""
    out, save = tmp_path_factory.mktemp("out"), ppo.save_policy

    def save_and_record(run, model, tokenizer):
        with torch.no_grad():
            trained_logits["logits"] = model(TOKEN_IDS).logits
        save(run, model, tokenizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "save_policy", save_and_record)
        train_in_process(*PPO, *data, f"output_dir={out}")
    return out


@pytest.fixture(scope="module")
def resumed(out, data):
    """The directory of the same run under another name, killed and resumed."""
    command = [*PPO, *data, f"output_dir={out}", "run_name=resumed"]
    folder = kill_at_step(Command(*command), out, "resumed*", "objective/kl", 3)
    output = train(*command)
    assert "resuming from the last checkpoint" in output
    assert find_run(out, "resumed*") == folder
    (out / "output.txt").write_text(output)
    return folder


def test_one_command_trains_three_runs_and_prints_the_lineage(out, resumed):
    names = [find_run(out, f"manners-{method}-tiny-*").name for method in ("sft", "reward", "ppo")]
    for folder in (find_run(out, "manners-ppo*"), resumed):
        lineage = (folder / "lineage.md").read_text()
        assert [line.split()[1] for line in lineage.splitlines()] == [*names[:2], folder.name]
    assert lineage in (out / "output.txt").read_text()
    _, runs = mlflow_runs(out)
    assert set(names) <= runs.keys() and {run.info.status for run in runs.values()} == {"FINISHED"}


def test_mlflow_runs_are_linked_in_both_directions(out):
    _, runs = mlflow_runs(out)
    sft, reward, ppo_run = (runs[find_run(out, f"manners-{m}-tiny-*").name] for m in ("sft", "reward", "ppo"))
    assert ppo_run.data.tags["manners.policy_run_id"] == sft.info.run_id
    assert ppo_run.data.tags["manners.reward_run_id"] == reward.info.run_id
    for dependency in (sft, reward):
        assert dependency.data.tags[f"manners.used_by.{ppo_run.info.run_name}"] == ppo_run.info.run_id


def test_dependency_is_tagged_with_its_own_overrides(out):
    _, runs = mlflow_runs(out)
    overrides = runs[find_run(out, "manners-sft*").name].data.tags["manners.overrides"]
    assert "method=sft" in overrides and "method=ppo" not in overrides


def test_run_directory_and_artifacts_are_complete(out):
    folder = find_run(out, "manners-ppo*")
    assert {"before_after.md", "after.json", "curves.png", "lineage.md", "model", "config.yaml"} <= {
        p.name for p in folder.iterdir()
    }
    assert not list(folder.glob("*.ckpt")) and not list(folder.glob("best*"))
    report = (folder / "before_after.md").read_text()
    assert "reward, standard deviations" in report and "KL of sampled replies to the reference" in report
    client, runs = mlflow_runs(out)
    paths = artifact_paths(client, runs[folder.name].info.run_id)
    tables = {f"rollouts/{i:05d}.json" for i in range(1, ITERATIONS + 1)}
    assert tables | {"lineage.md", "before_after.md", "figures/curves.png", ADAPTER, "model/manners.yaml"} <= paths


def test_reward_of_the_report_is_that_of_its_replies(out):
    after = json.loads((find_run(out, "manners-ppo*") / "after.json").read_text())
    folder = find_run(out, "manners-reward*") / "model"
    score, normalizer = load_scorer(ModelRef("reward", str(folder)), "cpu"), ScoreNormalizer.load(folder)
    replies = after["generations"]
    scores = score([([{"role": "user", "content": g["prompt"]}], g["reply"]) for g in replies])
    penalties = [0.0 if g["has_eos"] else 1.0 for g in replies]
    rewards = [normalizer.to_target(s) - p for s, p in zip(scores, penalties, strict=True)]
    reported = after["extra_metrics"]["reward, standard deviations"]["value"]
    assert abs(reported - sum(rewards) / len(rewards)) < 1e-4 and len({*rewards}) > 1


def check_metrics(out, folder):
    """Every metric is logged once for each iteration, in the file and in MLflow."""
    client, runs = mlflow_runs(out)
    run_id = runs[folder.name].info.run_id
    logged = runs[folder.name].data.metrics.keys()
    assert logged >= ITERATION_METRICS | {"eval/scores", "eval/reward_model", "before/loss", "after/loss"}
    records = read_records(folder / "metrics.jsonl")
    for name in logged:
        steps = sorted(m.step for m in client.get_metric_history(run_id, name))
        group = name.split("/")[0]
        expected = {"before": [0], "cost": [0], "after": [ITERATIONS], "eval": [0, 2, 4, 5]}.get(group, [1, 2, 3, 4, 5])
        assert steps == expected, name
        assert [r["step"] for r in records if name in r] == expected, name


def check_tables(out, folder):
    """There is a table of samples for each iteration."""
    client, runs = mlflow_runs(out)
    for i in range(1, ITERATIONS + 1):
        table = client.download_artifacts(runs[folder.name].info.run_id, f"rollouts/{i:05d}.json")
        with open(table) as file:
            content = json.load(file)
        assert {"prompt", "reply", "model", "kl"} <= set(content["columns"])
        assert len(content["data"]) == 2, i


def test_every_metric_and_table_is_logged_once(out):
    check_metrics(out, find_run(out, "manners-ppo*"))
    check_tables(out, find_run(out, "manners-ppo*"))


def test_killed_run_resumes_to_the_same_result(out, resumed):
    assert (resumed / ADAPTER).read_bytes() == (find_run(out, "manners-ppo*") / ADAPTER).read_bytes()
    check_metrics(out, resumed)
    check_tables(out, resumed)


def test_second_run_reuses_both_dependencies(out, resumed):
    for method in ("sft", "reward"):
        assert len(list(out.glob(f"runs/manners-{method}*"))) == 1
    _, runs = mlflow_runs(out)
    used = [key for key in runs[find_run(out, "manners-sft*").name].data.tags if key.startswith("manners.used_by.")]
    assert {f"manners.used_by.{resumed.name}", f"manners.used_by.{find_run(out, 'manners-ppo*').name}"} <= set(used)


def test_plan_prints_what_would_happen_and_trains_nothing(out, data, tmp_path):
    output = train(*PPO, *data, f"output_dir={tmp_path}", "plan=true")
    assert output.count("python train.py") == 3 and "reuse" not in output
    assert not list(tmp_path.iterdir())
    before = sorted(out.rglob("*"))
    output = train(*PPO, *data, f"output_dir={out}", "plan=true")
    for method in ("sft", "reward"):
        assert f"reuse {find_run(out, f'manners-{method}*').name}" in output
    assert sorted(out.rglob("*")) == before


def test_saved_models_load_without_manners(out, trained_logits, tmp_path):
    """SFT's and PPO's, in a process that cannot import manners; PPO's logits equal those before saving."""
    sft, folder = find_run(out, "manners-sft*") / "model", find_run(out, "manners-ppo*") / "model"
    code = f"""
import sys
sys.modules["manners"] = None
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import save_file
from transformers import AutoTokenizer, GenerationConfig
for folder in ({str(sft)!r}, {str(folder)!r}):
    model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token_id in GenerationConfig.from_pretrained(folder).eos_token_id
    chat = [{{"role": "user", "content": "Hello!"}}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    assert model.generate(**ids, max_new_tokens=8).shape[1] > ids["input_ids"].shape[1]
with torch.no_grad():
    save_file({{"logits": model(torch.arange(5, 45)[None]).logits}}, {str(tmp_path / "logits.safetensors")!r})
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert torch.allclose(load_file(tmp_path / "logits.safetensors")["logits"], trained_logits["logits"], atol=1e-4)
    sft_weights = load_file(find_run(out, "manners-sft*") / ADAPTER)
    assert load_file(folder.parent / ADAPTER).keys() == sft_weights.keys()  # SFT's adapter and PPO's, concatenated:
    name = next(iter(sft_weights))
    assert load_file(folder.parent / ADAPTER)[name].numel() == 2 * sft_weights[name].numel()
