"""`python train.py method=dpo` from nothing: linked runs, killed and resumed; whole weights; loaded without us."""

import hydra
import pytest
import torch
from safetensors.torch import load_file

from manners.cli import main as cli
from manners.pipeline import dependencies
from manners.pipeline.dependencies import Stage
from manners.pipeline.stages import dpo
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
from tests.configs import compose

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
IDS = torch.arange(5, 45)[None]
ADAPTER = "model/adapter_model.safetensors"
EVERY_STEP = {
    f"train/{name}"
    for name in ("loss", "grad_norm", "learning_rate", "rewards/margins", "rewards/accuracies", "rewards/chosen")
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
    """Both runs, from nothing."""
    out, save = tmp_path_factory.mktemp("out"), dpo.save

    def watch(run, model, tokenizer):
        with torch.no_grad():
            in_memory["logits"] = model(IDS).logits
        save(run, model, tokenizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo, "save", watch)
        train_in_process(*DPO, *data, f"output_dir={out}")
    return out


def test_it_starts_from_the_sft_run_and_is_linked_with_it(out):
    folder, earlier = find_run(out, "manners-dpo-tiny-*"), find_run(out, "manners-sft-tiny-*")
    assert [line.split()[1] for line in (folder / "lineage.md").read_text().splitlines()] == [earlier.name, folder.name]
    _, runs = mlflow_runs(out)
    assert {run.info.status for run in runs.values()} == {"FINISHED"} and len(runs) == 2
    assert runs[folder.name].data.tags["manners.policy_run_id"] == runs[earlier.name].info.run_id


def test_it_is_reported_like_any_run(out):
    folder = find_run(out, "manners-dpo*")
    assert {"before_after.md", "after.json", "curves.png", "manner.png", "lineage.md", "model"} <= {
        p.name for p in folder.iterdir()
    }
    assert not list(folder.glob("*.ckpt")) and not list(folder.glob("best*")) and not list(folder.glob("checkpoint*"))
    client, runs = mlflow_runs(out)
    have = artifact_paths(client, runs[folder.name].info.run_id)
    assert {"before_after.md", "figures/curves.png", ADAPTER, "model/manners.yaml", "model/tokenizer.json"} <= have


def check_metrics(out, folder):
    """TRL's names, each step once, in the file and in MLflow."""
    client, runs = mlflow_runs(out)
    logged = runs[folder.name].data.metrics.keys()
    assert logged >= EVERY_STEP | {"eval/loss", "eval/rewards/accuracies", "before/loss", "after/loss"}
    for name in logged:
        group = name.split("/")[0].split("_")[0]
        once = {"before": [0], "cost": [0], "after": [STEPS], "eval": [3, 6, 8]}
        expected = once.get(group, list(range(1, STEPS + 1)))
        history = client.get_metric_history(runs[folder.name].info.run_id, name)
        assert sorted(m.step for m in history) == expected, name
        assert [r["step"] for r in read_records(folder / "metrics.jsonl") if name in r] == expected, name


def test_every_metric_of_every_step_is_there_once(out):
    check_metrics(out, find_run(out, "manners-dpo*"))


def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(out, data):
    command = [*DPO, *data, f"output_dir={out}", "run_name=cut"]
    folder = kill_at_step(Command(*command), out, "cut*", "loss", 4)
    assert "going on from the last checkpoint" in train(*command)
    whole = find_run(out, "manners-dpo*")
    assert (folder / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()
    check_metrics(out, folder)
    assert len(list(out.glob("runs/manners-sft*"))) == 1  # found again


def test_what_was_trained_loads_on_the_base_with_plain_peft(out, in_memory):
    """One adapter, SFT's and DPO's together, that says what the policy in memory said."""
    from peft import AutoPeftModelForCausalLM

    folder = find_run(out, "manners-dpo*")
    model = AutoPeftModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, in_memory["logits"], atol=1e-4)
    earlier, both = load_file(find_run(out, "manners-sft*") / ADAPTER), load_file(folder / ADAPTER)
    assert all(both[name].numel() == 2 * earlier[name].numel() for name in earlier)


def test_all_weights_from_a_lora_policy_and_from_the_base(out, data):
    """The reference is the policy that training began with, so the first loss is log 2 either way."""
    policy = find_run(out, "manners-sft*").name
    for name, start_from in (("whole", f"policy_from={policy}"), ("bare", "policy_from=none")):
        train_in_process(*DPO, *data, f"output_dir={out}", "adapter=none", "method.max_steps=2", f"run_name={name}", start_from)
        folder = find_run(out, f"{name}*")
        assert (folder / "model" / "model.safetensors").exists()
        first = next(r["loss"] for r in read_records(folder / "metrics.jsonl") if "loss" in r)
        assert first == pytest.approx(0.693147, abs=1e-5)


def test_lineage_show_names_the_policy_and_no_reward_model(out, data, capsys):
    command = [*DPO, *data, f"output_dir={out}"]
    cfg = compose(*command)
    with hydra.initialize_config_dir(str(cli.CONF), version_base="1.3"):
        needs = cli.needs(cfg, command)
    dependencies.print_plan(Stage(cfg, command), needs)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"policy  reuse {find_run(out, 'manners-sft*').name}")
    assert lines[1].startswith("dpo     train") and len(lines) == 2
