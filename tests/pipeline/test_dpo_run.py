"""`python train.py method=dpo` end to end: linked runs, resumed, full fine-tuning, loaded with plain peft."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file

from manners.config.compose import plan_run, register
from manners.pipeline import dependencies
from manners.pipeline.stages import preference
from tests.commands import (
    SHORT_STAGE,
    SMALL,
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
from tests.configs import tiny

STEPS = 8
DPO = [
    "method=dpo",
    *SMALL,
    f"policy_run_overrides=[{SHORT_STAGE}]",
    f"method.max_steps={STEPS}",
    "method.per_device_train_batch_size=4",
    "method.eval_steps=3",
    "method.save_steps=2",
    "method.logging_steps=1",
]
TOKEN_IDS = torch.arange(5, 45)[None]
ADAPTER = "model/adapter_model.safetensors"
STEP_METRICS = {
    f"train/{name}"
    for name in ("loss", "grad_norm", "learning_rate", "rewards/margins", "rewards/accuracies", "rewards/chosen")
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
    """The output directory of the command, which trains the SFT policy first."""
    out, save = tmp_path_factory.mktemp("out"), preference.save_policy

    def save_and_record(run, model, tokenizer):
        with torch.no_grad():
            trained_logits["logits"] = model(TOKEN_IDS).logits
        save(run, model, tokenizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preference, "save_policy", save_and_record)
        train_in_process(*DPO, *data, f"output_dir={out}")
    return out


def test_dpo_run_is_linked_with_its_sft_run(out):
    folder, sft = find_run(out, "manners-dpo-tiny-*"), find_run(out, "manners-sft-tiny-*")
    assert [line.split()[1] for line in (folder / "lineage.md").read_text().splitlines()] == [sft.name, folder.name]
    _, runs = mlflow_runs(out)
    assert {run.info.status for run in runs.values()} == {"FINISHED"} and len(runs) == 2
    assert runs[folder.name].data.tags["manners.policy_run_id"] == runs[sft.name].info.run_id


def test_run_directory_and_artifacts_are_complete(out):
    folder = find_run(out, "manners-dpo*")
    names = {p.name for p in folder.iterdir()}
    assert {"before_after.md", "after.json", "curves.png", "style_accuracy.png", "lineage.md", "model"} <= names
    assert not [name for name in names if name.startswith(("best", "checkpoint")) or name.endswith(".ckpt")]
    client, runs = mlflow_runs(out)
    paths = artifact_paths(client, runs[folder.name].info.run_id)
    assert {"before_after.md", "figures/curves.png", ADAPTER, "model/manners.yaml", "model/tokenizer.json"} <= paths


def check_metrics(out, folder):
    """Every metric is logged once for each step, in the file and in MLflow."""
    client, runs = mlflow_runs(out)
    logged = runs[folder.name].data.metrics.keys()
    assert logged >= STEP_METRICS | {"eval/loss", "eval/rewards/accuracies", "before/loss", "after/loss"}
    steps = {"before": [0], "cost": [0], "after": [STEPS], "eval": [3, 6, 8], "train": list(range(1, STEPS + 1))}
    for name in logged:
        expected = steps[name.split("/")[0]]
        history = client.get_metric_history(runs[folder.name].info.run_id, name)
        assert sorted(m.step for m in history) == expected, name
        assert [r["step"] for r in read_records(folder / "metrics.jsonl") if name in r] == expected, name


def test_every_metric_is_logged_once(out):
    check_metrics(out, find_run(out, "manners-dpo*"))


def test_killed_run_resumes_to_the_same_result(out, data):
    command = [*DPO, *data, f"output_dir={out}", "run_name=resumed"]
    folder = kill_at_step(Command(*command), out, "resumed*", "train/loss", 4)
    assert "resuming from the last checkpoint" in train(*command)
    full = find_run(out, "manners-dpo*")
    assert (folder / ADAPTER).read_bytes() == (full / ADAPTER).read_bytes()
    check_metrics(out, folder)
    assert len(list(out.glob("runs/manners-sft*"))) == 1  # the SFT policy is reused


def test_saved_adapter_loads_on_the_base_with_plain_peft(out, trained_logits):
    """One adapter, SFT's and DPO's concatenated, with the logits of the policy before saving."""
    folder = find_run(out, "manners-dpo*")
    model = AutoPeftModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(model(TOKEN_IDS).logits, trained_logits["logits"], atol=1e-4)
    sft, combined = load_file(find_run(out, "manners-sft*") / ADAPTER), load_file(folder / ADAPTER)
    assert all(combined[name].numel() == 2 * sft[name].numel() for name in sft)


@pytest.mark.parametrize("start", ["policy", "base"])
def test_full_fine_tuning_starts_at_a_loss_of_log_2(out, data, start):
    """So the reference is the policy that training started from, a LoRA one or the base."""
    source = find_run(out, "manners-sft*").name if start == "policy" else "none"
    overrides = ["adapter=none", "method.max_steps=2", f"policy_from={source}"]
    train_in_process(*DPO, *data, f"output_dir={out}", f"run_name=from-{start}", *overrides)
    folder = find_run(out, f"from-{start}*")
    assert (folder / "model" / "model.safetensors").exists()
    first = next(r["train/loss"] for r in read_records(folder / "metrics.jsonl") if "train/loss" in r)
    assert first == pytest.approx(0.693147, abs=1e-5)


def test_plan_has_the_policy_and_no_reward_model(out, data, capsys):
    register()
    dependencies.print_plan(plan_run(tiny([*DPO, *data, f"output_dir={out}"])))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"policy  reuse {find_run(out, 'manners-sft*').name}")
    assert lines[1].startswith("dpo     train") and len(lines) == 2
