"""The command a user types, end to end on the tiny base, and what it leaves behind."""

import json
import shutil
from pathlib import Path

import pytest

from tests import commands

SMALL = [
    *commands.SMALL,
    "dataset.max_rows=24",
    "method.per_device_train_batch_size=4",
    "method.max_steps=12",
    "method.save_steps=2",
    "method.eval_steps=4",
    "method.logging_steps=1",
]


def train(out: Path, *overrides: str, **how) -> str:
    return commands.train(*SMALL, f"output_dir={out}", *overrides, **how)


def refused(out: Path, *overrides: str) -> str:
    """What the command says, which must end with exit code 1 and in words."""
    command = commands.Command(*SMALL, f"output_dir={out}", *overrides)
    assert command.wait() == 1, command.output
    assert "Traceback" not in command.output
    return command.output


def only_run(out: Path) -> Path:
    return commands.find_run(out, "*")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, train(out, "register_model=true")


@pytest.fixture(scope="module")
def tracked(finished):
    client, runs = commands.mlflow_runs(finished[0])
    (run,) = runs.values()
    return client, run


def test_its_model_is_the_champion_of_its_study(finished, tracked):
    client, run = tracked
    version = client.get_model_version_by_alias("manners", "champion")
    assert version.run_id == run.info.run_id
    loss = min(m.value for m in client.get_metric_history(run.info.run_id, "eval/loss"))
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
    assert [s["step"] for s in steps if "eval/loss" in s] == [4, 8, 12]


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
    for name in ("loss", "perplexity", "token_accuracy", "grad_norm", "learning_rate", "tokens_per_second", "non_padding_fraction"):
        history = client.get_metric_history(run.info.run_id, f"train/{name}")
        assert [m.step for m in history] == list(range(1, 13)), name
    assert {"before/loss", "after/loss", "before/fit", "after/fit", "eval/loss"} <= run.data.metrics.keys()


def test_mlflow_holds_tables_figures_and_the_model(tracked):
    client, run = tracked
    have = commands.artifact_paths(client, run.info.run_id)
    assert {"config.yaml", "code.diff", "before_after.md", "before_after.json", "figures/learning_curve.png"} <= have
    model = {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "generation_config.json"}
    assert {f"model/{name}" for name in model | {"chat_template.jinja", "manners.yaml"}} <= have


def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(finished, tmp_path):
    """kill -9 in mid-training; the same command must end in the same weights, metrics and MLflow run."""
    whole = only_run(finished[0])
    cut = commands.kill_at_step(commands.Command(*SMALL, f"output_dir={tmp_path}"), tmp_path, "*", "train/loss", 5)
    assert "going on from the last checkpoint" in train(tmp_path)
    weights = "model/adapter_model.safetensors"
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()
    client, runs = commands.mlflow_runs(tmp_path)
    (tracked,) = runs.values()
    history = client.get_metric_history(tracked.info.run_id, "train/loss")
    assert sorted(m.step for m in history) == list(range(1, 13))
    assert tracked.info.status == "FINISHED"


def test_a_server_that_refuses_is_said_so_at_once(tmp_path):
    said = refused(tmp_path, "tracking.uri=http://127.0.0.1:9")
    assert "error: tracking.uri=http://127.0.0.1:9: no server answers" in said.replace("\n", " ")


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = refused(tmp_path / "file" / "out")
    assert "cannot be written" in said and "output_dir=" in said


def test_preview_shows_the_examples_and_trains_nothing(tmp_path):
    said = train(tmp_path, "preview=true")
    assert "carry loss" in said and "<|im_end|>" in said
    assert not list(tmp_path.iterdir())


def test_the_users_own_file_trains_from_another_folder(tmp_path):
    """Relative paths mean what the shell means by them; full fine-tuning saves whole weights."""
    rows = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train(tmp_path / "out", "dataset=jsonl", "dataset.path=mine.jsonl", "adapter=none", cwd=tmp_path)
    assert (only_run(tmp_path / "out") / "model" / "model.safetensors").exists()


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_learn_what_those_as_written_do(tmp_path):
    train(tmp_path / "plain", "adapter=none")
    said = train(tmp_path / "fast", "adapter=none", "hardware.compile=true")
    assert "compiling the layers" in said
    plain, fast = (
        [r["eval/loss"] for r in commands.read_records(only_run(tmp_path / kind) / "metrics.jsonl") if "eval/loss" in r]
        for kind in ("plain", "fast")
    )
    assert len(plain) == 3 and fast == pytest.approx(plain, rel=1e-3)
