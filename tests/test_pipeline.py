"""The command a user types, end to end on the tiny base, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "dataset.max_rows=48",
    "method.max_steps=12",
    "method.save_steps=2",
    "method.eval_steps=4",
    "method.logging_steps=1",
    "evaluation.test_prompts=6",
    "evaluation.prompts=3",
    "evaluation.max_new_tokens=12",
    "tracking.system_metrics=false",
]


def train(out: Path, *overrides: str, wait: bool = True, cwd: Path = ROOT) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, f"output_dir={out}", *overrides]
    env = os.environ | {"COLUMNS": "200"}
    run = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if wait:
        run.said = run.communicate(timeout=300)[0]  # type: ignore[attr-defined]
    return run


def only_run(out: Path) -> Path:
    (folder,) = (out / "runs").iterdir()
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    run = train(out, "register=true")
    assert run.returncode == 0, run.said
    return out, run.said


@pytest.fixture(scope="module")
def tracked(finished):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{finished[0]}/mlflow.db")
    experiment = client.get_experiment_by_name("manners")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def test_its_model_is_the_champion_of_its_study(finished, tracked):
    client, run = tracked
    version = client.get_model_version_by_alias("manners", "champion")
    assert version.run_id == run.info.run_id
    loss = min(m.value for m in client.get_metric_history(run.info.run_id, "val/loss"))
    assert float(version.tags["metric"]) == pytest.approx(loss)
    assert f"registered as models:/manners/1, the new champion: the first, with {loss:.4g}" in finished[1]


def test_it_says_what_changed_and_where_to_look(finished):
    out, said = finished
    assert "held-out loss" in said and "before" in said and "after" in said
    assert str(only_run(out)) in said.replace("\n", "")
    assert f"mlflow ui --backend-store-uri sqlite:///{out}/mlflow.db" in said  # `make ui` is for outputs/ alone


def test_the_run_folder_is_complete(finished):
    folder = only_run(finished[0])
    names = {p.name for p in folder.iterdir()}
    expected = {
        "before_after.md",
        "after.json",
        "learning_curve.png",
        "manner.png",
        "config.yaml",
        "metrics.jsonl",
        "model",
    }
    assert expected <= names
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps if "train/loss" in s] == list(range(1, 13))
    assert [s["step"] for s in steps if "val/loss" in s] == [4, 8, 12]


def test_mlflow_holds_config_code_versions_and_data(tracked):
    _, run = tracked
    assert run.info.status == "FINISHED"
    assert run.data.params["method.learning_rate"] and run.data.params["dataset.path"] == "package:strictbot"
    tags = run.data.tags
    assert "torch 2.13" in tags["manners.versions"] and "manners.git_commit" in tags
    assert "method.max_steps=12" in tags["manners.overrides"]
    assert "| held-out loss" in tags["mlflow.note.content"]
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == tags["manners.data_digest"]


def test_mlflow_holds_every_step_of_every_metric(tracked):
    client, run = tracked
    for name in ("loss", "perplexity", "token_accuracy", "grad_norm", "learning_rate", "tokens_per_second", "fill"):
        history = client.get_metric_history(run.info.run_id, f"train/{name}")
        assert [m.step for m in history] == list(range(1, 13)), name
    assert {"before/loss", "after/loss", "before/fit", "after/fit", "val/loss"} <= run.data.metrics.keys()


def test_mlflow_holds_tables_figures_and_the_model(tracked):
    client, run = tracked

    def files(folder=""):
        found = client.list_artifacts(run.info.run_id, folder)
        return {f.path for f in found} | {p for f in found if f.is_dir for p in files(f.path)}

    have = files()
    assert {"config.yaml", "code.diff", "before_after.md", "before_after.json", "figures/learning_curve.png"} <= have
    model = {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "generation_config.json"}
    assert {f"model/{name}" for name in model | {"chat_template.jinja", "manners.yaml"}} <= have


def test_the_saved_model_loads_with_plain_transformers_and_peft(finished):
    """In a process that cannot import manners at all."""
    folder = only_run(finished[0]) / "model"
    code = f"""
import sys
sys.modules["manners"] = None
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, GenerationConfig
model = AutoPeftModelForCausalLM.from_pretrained({str(folder)!r})
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})
stops = GenerationConfig.from_pretrained({str(folder)!r}).eos_token_id
chat = [{{"role": "user", "content": "Hello!"}}]
text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
print(model.generate(**ids, max_new_tokens=8).shape[1] > ids["input_ids"].shape[1], tokenizer.eos_token_id in stops)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(finished, tmp_path):
    """kill -9 in mid-training; the same command must end in the same weights, metrics and MLflow run."""
    whole = only_run(finished[0])
    run = train(tmp_path, wait=False)
    deadline = time.time() + 200
    while time.time() < deadline:
        checkpoints = list(tmp_path.glob("runs/*/last.ckpt"))
        metrics = list(tmp_path.glob("runs/*/metrics.jsonl"))
        if checkpoints and len(metrics[0].read_text().splitlines()) >= 6:
            break
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    cut = only_run(tmp_path)
    assert json.loads((cut / "run.json").read_text())["status"] == "running"
    again = train(tmp_path)
    assert again.returncode == 0, again.said
    assert "going on from the last checkpoint" in again.said
    assert only_run(tmp_path) == cut
    weights = "model/adapter_model.safetensors"
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (tracked,) = client.search_runs([client.get_experiment_by_name("manners").experiment_id])
    history = client.get_metric_history(tracked.info.run_id, "train/loss")
    assert sorted(m.step for m in history) == list(range(1, 13))
    assert tracked.info.status == "FINISHED"


def test_a_server_that_refuses_is_said_so_at_once(tmp_path):
    run = train(tmp_path, "tracking.uri=http://127.0.0.1:9")
    assert run.returncode == 1
    assert "error: tracking.uri=http://127.0.0.1:9: no server answers" in run.said.replace("\n", " ")
    assert "Traceback" not in run.said


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    run = train(tmp_path / "file" / "out")
    assert run.returncode == 1
    assert "cannot be written" in run.said and "output_dir=" in run.said and "Traceback" not in run.said


def test_preview_shows_the_examples_and_trains_nothing(tmp_path):
    run = train(tmp_path, "preview=true")
    assert run.returncode == 0, run.said
    assert "carry loss" in run.said and "<|im_end|>" in run.said
    assert not list(tmp_path.iterdir())


def test_the_users_own_file_trains_from_another_folder(tmp_path):
    """Relative paths mean what the shell means by them; full fine-tuning saves whole weights."""
    rows = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = train(tmp_path / "out", "dataset=jsonl", "dataset.path=mine.jsonl", "adapter=none", cwd=tmp_path)
    assert run.returncode == 0, run.said
    assert (only_run(tmp_path / "out") / "model" / "model.safetensors").exists()
