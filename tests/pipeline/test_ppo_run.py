"""`python train.py method=ppo` from nothing: three runs, linked; found again; killed and resumed; loaded without us."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

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
IDS = torch.arange(5, 45)[None]
ADAPTER = "model/adapter_model.safetensors"
EVERY_ITERATION = {
    *(f"objective/{name}" for name in ("kl", "entropy", "non_score_reward", "rlhf_reward", "scores", "length")),
    *("policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg"),
    *("val/clipfrac_avg", "val/ratio", "val/num_eos_tokens", "reward/model", "episode", "lr", "policy/grad_norm"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_strictbot(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def in_memory():
    """Logits of the policy that was trained, as it was before it was saved."""
    return {}


@pytest.fixture(scope="module")
def out(tmp_path_factory, data, in_memory):
    """The first command, from nothing."""
    out, save = tmp_path_factory.mktemp("out"), ppo.save

    def watch(run, model, tokenizer):
        with torch.no_grad():
            in_memory["logits"] = model(IDS).logits
        save(run, model, tokenizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "save", watch)
        train_in_process(*PPO, *data, f"output_dir={out}")
    return out


@pytest.fixture(scope="module")
def cut(out, data):
    """The same command under another name, which so has a folder of its own; killed, and typed again."""
    command = [*PPO, *data, f"output_dir={out}", "run_name=cut"]
    folder = kill_at_step(Command(*command), out, "cut*", "objective/kl", 3)
    said = train(*command)
    assert "going on from the last checkpoint" in said
    assert find_run(out, "cut*") == folder
    (out / "said").write_text(said)
    return folder


def test_one_command_trains_all_three_and_a_command_says_how_they_follow(out, cut):
    names = [find_run(out, f"manners-{method}-tiny-*").name for method in ("sft", "reward", "ppo")]
    for folder in (find_run(out, "manners-ppo*"), cut):
        lineage = (folder / "lineage.md").read_text()
        assert [line.split()[1] for line in lineage.splitlines()] == [*names[:2], folder.name]
    assert lineage in (out / "said").read_text()
    _, runs = mlflow_runs(out)
    assert set(names) <= runs.keys() and {run.info.status for run in runs.values()} == {"FINISHED"}


def test_the_runs_are_linked_both_ways(out):
    _, runs = mlflow_runs(out)
    sft, judge, last = (runs[find_run(out, f"manners-{m}-tiny-*").name] for m in ("sft", "reward", "ppo"))
    assert last.data.tags["manners.policy_run_id"] == sft.info.run_id
    assert last.data.tags["manners.reward_run_id"] == judge.info.run_id
    for earlier in (sft, judge):
        assert earlier.data.tags[f"manners.used_by.{last.info.run_name}"] == last.info.run_id


def test_the_tags_of_a_stage_tell_its_own_command(out):
    _, runs = mlflow_runs(out)
    overrides = runs[find_run(out, "manners-sft*").name].data.tags["manners.overrides"]
    assert "method=sft" in overrides and "method=ppo" not in overrides


def test_its_folder_and_its_artifacts_are_complete(out):
    folder = find_run(out, "manners-ppo*")
    assert {"before_after.md", "after.json", "curves.png", "lineage.md", "model", "config.yaml"} <= {
        p.name for p in folder.iterdir()
    }
    assert not list(folder.glob("*.ckpt")) and not list(folder.glob("best*"))
    report = (folder / "before_after.md").read_text()
    assert "reward, standard deviations" in report and "KL to the start" in report
    client, runs = mlflow_runs(out)
    have = artifact_paths(client, runs[folder.name].info.run_id)
    tables = {f"rollouts/{i:05d}.json" for i in range(1, ITERATIONS + 1)}
    assert tables | {"lineage.md", "before_after.md", "figures/curves.png", f"{ADAPTER}", "model/manners.yaml"} <= have


def check_metrics(out, folder):
    """Each metric of an iteration once for each, in the file and in MLflow."""
    client, runs = mlflow_runs(out)
    run_id = runs[folder.name].info.run_id
    logged = runs[folder.name].data.metrics.keys()
    assert logged >= EVERY_ITERATION | {"eval/scores", "eval/reward_model", "before/loss", "after/loss"}
    written = read_records(folder / "metrics.jsonl")
    for name in logged:
        steps = sorted(m.step for m in client.get_metric_history(run_id, name))
        group = name.split("/")[0]
        expected = {"before": [0], "cost": [0], "after": [ITERATIONS], "eval": [0, 2, 4, 5]}.get(group, [1, 2, 3, 4, 5])
        assert steps == expected, name
        assert [r["step"] for r in written if name in r] == expected, name


def check_tables(out, folder):
    client, runs = mlflow_runs(out)
    for i in range(1, ITERATIONS + 1):
        table = client.download_artifacts(runs[folder.name].info.run_id, f"rollouts/{i:05d}.json")
        with open(table) as file:
            found = json.load(file)
        assert {"prompt", "reply", "model", "kl"} <= set(found["columns"])
        assert len(found["data"]) == 2, i


def test_every_metric_and_table_of_every_iteration_is_there_once(out):
    check_metrics(out, find_run(out, "manners-ppo*"))
    check_tables(out, find_run(out, "manners-ppo*"))


def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(out, cut):
    assert (cut / ADAPTER).read_bytes() == (find_run(out, "manners-ppo*") / ADAPTER).read_bytes()
    check_metrics(out, cut)
    check_tables(out, cut)


def test_the_second_time_both_inputs_are_reused(out, cut):
    for method in ("sft", "reward"):
        assert len(list(out.glob(f"runs/manners-{method}*"))) == 1
    _, runs = mlflow_runs(out)
    used = [key for key in runs[find_run(out, "manners-sft*").name].data.tags if key.startswith("manners.used_by.")]
    assert {f"manners.used_by.{cut.name}", f"manners.used_by.{find_run(out, 'manners-ppo*').name}"} <= set(used)


def test_lineage_show_tells_what_would_happen_and_makes_nothing(out, data, tmp_path):
    shown = train(*PPO, *data, f"output_dir={tmp_path}", "plan=true")
    assert shown.count("python train.py") == 3 and "reuse" not in shown
    assert not list(tmp_path.iterdir())
    before = sorted(out.rglob("*"))
    shown = train(*PPO, *data, f"output_dir={out}", "plan=true")
    for method in ("sft", "reward"):
        assert f"reuse {only(out, f'manners-{method}*').name}" in shown
    assert sorted(out.rglob("*")) == before


def test_what_was_trained_loads_without_us_and_says_the_same(out, in_memory, tmp_path):
    """SFT's folder and PPO's, in a process that cannot import manners; of the latter, the logits as in memory."""
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
    save_file({{"logits": model(torch.arange(5, 45)[None]).logits}}, {str(tmp_path / "theirs")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.allclose(load_file(tmp_path / "theirs")["logits"], in_memory["logits"], atol=1e-4)
    earlier = load_file(find_run(out, "manners-sft*") / ADAPTER)
    assert load_file(folder.parent / ADAPTER).keys() == earlier.keys()  # and it is more than SFT's alone:
    name = next(iter(earlier))
    assert load_file(folder.parent / ADAPTER)[name].numel() == 2 * earlier[name].numel()
