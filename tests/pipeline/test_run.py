"""`python train.py` end to end with SFT on the tiny base, and what it leaves behind."""

import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from manners.data.batching import ResumableBatches
from manners.data.loading import Splits
from manners.data.types import Conversation
from manners.pipeline.run import as_it_began, rows_without_samples, unused_options
from manners.pipeline.stages.context import total_steps
from manners.runtime import run_dir
from manners.runtime.device import Device
from manners.runtime.run_dir import RunDir
from tests import commands
from tests.commands import find_run, mlflow_runs, read_records
from tests.configs import compose

SMALL = [
    *commands.SMALL,
    "dataset.max_rows=24",
    "method.per_device_train_batch_size=4",
    "method.max_steps=12",
    "method.save_steps=2",
    "method.eval_steps=4",
    "method.logging_steps=1",
]
METRICS = ("loss", "perplexity", "token_accuracy", "grad_norm", "learning_rate", "tokens_per_second")


def train(out: Path, *overrides: str, **kwargs) -> str:
    return commands.train(*SMALL, f"output_dir={out}", *overrides, **kwargs)


def output_of_failure(out: Path, *overrides: str) -> str:
    """The output of a command that must fail with a message, not a traceback."""
    command = commands.Command(*SMALL, f"output_dir={out}", *overrides)
    assert command.wait() == 1, command.output
    assert "Traceback" not in command.output
    return command.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output directory and the output of a finished run."""
    out = tmp_path_factory.mktemp("out")
    return out, train(out, "register_model=true")


@pytest.fixture(scope="module")
def mlflow_run(finished):
    """MLflow's client and the run in it."""
    client, runs = mlflow_runs(finished[0])
    (run,) = runs.values()
    return client, run


# --- What a run leaves behind ---


def test_register_model_makes_the_first_model_champion(finished, mlflow_run):
    client, run = mlflow_run
    version = client.get_model_version_by_alias("manners", "champion")
    assert version.run_id == run.info.run_id
    loss = min(m.value for m in client.get_metric_history(run.info.run_id, "eval/loss"))
    assert float(version.tags["metric"]) == pytest.approx(loss)
    assert f"registered as models:/manners/1, the new champion: the first, with {loss:.4g}" in finished[1]


def test_output_shows_the_change_and_where_to_look(finished):
    out, output = finished
    assert "held-out loss" in output and "before" in output and "after" in output
    assert str(find_run(out, "*")) in output.replace("\n", "")
    assert f"mlflow ui --backend-store-uri sqlite:///{out}/mlflow.db" in output  # `make ui` is for outputs/ alone


def test_output_says_how_to_chat(finished):
    """The command is run."""
    out, output = finished
    command = re.search("^talk with it: (.*)$", output, re.M)[1]
    done = subprocess.run(f"{command} -p Hello", shell=True, capture_output=True, text=True, cwd=out)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_run_directory_is_complete(finished):
    folder = find_run(finished[0], "*")
    assert {
        *("before_after.md", "after.json", "learning_curve.png", "style_accuracy.png"),
        *("config.yaml", "metrics.jsonl", "lineage.md", "model"),
    } <= {p.name for p in folder.iterdir()}
    records = read_records(folder / "metrics.jsonl")
    assert [r["step"] for r in records if "train/loss" in r] == list(range(1, 13))
    assert [r["step"] for r in records if "eval/loss" in r] == [4, 8, 12]


def test_mlflow_run_has_config_code_versions_and_data(mlflow_run):
    _, run = mlflow_run
    assert run.info.status == "FINISHED"
    assert run.data.params["method.learning_rate"] and run.data.params["dataset.path"] == "package:strictbot_tiny"
    tags = run.data.tags
    assert "torch 2.13" in tags["manners.versions"] and "manners.git_commit" in tags
    assert "method.max_steps=12" in tags["manners.overrides"]
    assert "| held-out loss" in tags["mlflow.note.content"]
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == tags["manners.data_digest"]


def test_mlflow_run_has_every_step_of_every_metric(mlflow_run):
    client, run = mlflow_run
    for name in (*METRICS, "non_padding_fraction"):
        history = client.get_metric_history(run.info.run_id, f"train/{name}")
        assert [m.step for m in history] == list(range(1, 13)), name
    assert {
        *("before/loss", "after/loss", "before/style_accuracy", "after/style_accuracy"),
        *("before/eos_rate", "after/eos_rate", "eval/loss"),
    } <= run.data.metrics.keys()


def test_mlflow_run_has_tables_figures_and_the_model(mlflow_run):
    client, run = mlflow_run
    paths = commands.artifact_paths(client, run.info.run_id)
    assert {"config.yaml", "code.diff", "before_after.md", "before_after.json", "figures/learning_curve.png"} <= paths
    model = {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "generation_config.json"}
    assert {f"model/{name}" for name in model | {"chat_template.jinja", "manners.yaml"}} <= paths


def test_killed_run_resumes_to_the_same_result(finished, tmp_path):
    """kill -9 in the middle of training; the same command ends in the same weights, metrics and MLflow run."""
    full = find_run(finished[0], "*")
    command = commands.Command(*SMALL, f"output_dir={tmp_path}")
    resumed = commands.kill_at_step(command, tmp_path, "*", "train/loss", 5)
    assert "resuming from the last checkpoint" in train(tmp_path)
    weights = "model/adapter_model.safetensors"
    assert (resumed / weights).read_bytes() == (full / weights).read_bytes()
    client, runs = mlflow_runs(tmp_path)
    (run,) = runs.values()
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(m.step for m in history) == list(range(1, 13))
    assert run.info.status == "FINISHED"


# --- Other ways to call it ---


def test_unreachable_tracking_server_is_reported_at_once(tmp_path):
    output = output_of_failure(tmp_path, "tracking.uri=http://127.0.0.1:9")
    assert "error: tracking.uri=http://127.0.0.1:9: no server answers" in output.replace("\n", " ")


def test_unwritable_output_dir_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    output = output_of_failure(tmp_path / "file" / "out")
    assert "cannot be written" in output and "output_dir=" in output


def test_preview_prints_examples_and_trains_nothing(tmp_path):
    output = train(tmp_path, "preview=true")
    assert "carry loss" in output and "<|im_end|>" in output
    assert not list(tmp_path.iterdir())


def test_relative_dataset_path_and_full_fine_tuning(tmp_path):
    """A relative path is relative to the working directory; full fine-tuning saves all weights."""
    rows = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train(tmp_path / "out", "dataset=jsonl", "dataset.path=mine.jsonl", "adapter=none", cwd=tmp_path)
    assert (find_run(tmp_path / "out", "*") / "model" / "model.safetensors").exists()


def test_plain_texts_train_with_the_default_options(tmp_path):
    """The first words of a held-out text are the prompt that is continued in the report."""
    texts = [{"text": f"The fox number {i} eats meat and sleeps by day."} for i in range(40)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    train(tmp_path / "out", "dataset=jsonl", f"dataset.path={tmp_path / 'texts.jsonl'}", "method.max_steps=2")
    report = (find_run(tmp_path / "out", "*") / "before_after.md").read_text()
    assert "| The fox number " in report and "held-out loss" in report


def test_repeated_command_names_the_earlier_run(finished, tmp_path):
    shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    earlier = find_run(tmp_path, "*")
    assert f"this very run is in {earlier} already (finished)" in train(tmp_path, "register_model=true")


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_train_as_eager_ones(tmp_path):
    train(tmp_path / "eager", "adapter=none")
    output = train(tmp_path / "compiled", "adapter=none", "hardware.compile=true")
    assert "compiling the layers" in output
    eager, compiled = (
        [r["eval/loss"] for r in read_records(find_run(tmp_path / kind, "*") / "metrics.jsonl") if "eval/loss" in r]
        for kind in ("eager", "compiled")
    )
    assert len(eager) == 3 and compiled == pytest.approx(eager, rel=1e-3)


@pytest.mark.parametrize("shares", [("0.3", "0"), ("0", "0.3"), ("0.3", "0.3")])
def test_no_checkpoint_is_chosen_on_the_rows_that_are_reported(tmp_path, shares, capsys):
    """The loss rises at this learning rate: where validation and test are the same rows, the last step is kept."""
    rows = [
        {"messages": [{"role": "user", "content": f"Is {i} big?"}, {"role": "assistant", "content": "Yes."}]}
        for i in range(40)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    validation, test = (
        f"dataset.{name}_share={share}" for name, share in zip(("validation", "test"), shares, strict=True)
    )
    overrides = [
        "dataset=jsonl",
        f"dataset.path={file}",
        validation,
        test,
        "method.learning_rate=1",
        "method.max_grad_norm=0",
    ]
    overrides += ["method.early_stopping_patience=1"] * ("0" in shares)
    commands.train_in_process(*SMALL, f"output_dir={tmp_path}", "dataset.style_judge=none", *overrides)
    folder = find_run(tmp_path, "*")
    assert ("not used: method.early_stopping_patience" in capsys.readouterr().out) == ("0" in shares)
    evaluated = [r["step"] for r in read_records(folder / "metrics.jsonl") if "eval/loss" in r]
    best = json.loads((folder / "run.json").read_text())["best_step"]
    if "0" in shares:
        assert (evaluated, best) == ([12], 12)
    else:
        assert evaluated == [4, 8, 12]


@pytest.mark.parametrize(
    ("rows", "method", "steps"),
    [
        (9, "sft", 20),  # ten epochs of two batches of eight and one
        (16, "sft", 20),
        (3, "sft", 10),
        (33, "sft method.gradient_accumulation_steps=4", 13),  # fifty batches, a step may span two epochs
        (33, "dpo method.gradient_accumulation_steps=4", 20),  # the Trainer begins an epoch with a new step
    ],
)
def test_an_epoch_reads_every_row(rows, method, steps):
    command = (
        f"method={method} method.max_steps=-1 method.num_train_epochs=10 method.per_device_train_batch_size=8".split()
    )
    cfg = compose(*command)
    assert total_steps(cfg, rows) == steps
    if method == "sft":  # without accumulation
        items = [SimpleNamespace(length=1, num_targets=1) for _ in range(rows)]
        batches = ResumableBatches(items, 8, list, steps, 1, seed=0, group_by_length=False)
        assert Counter(i for batch in batches.batches for i in batch) == dict.fromkeys(range(rows), 10)


def test_rows_that_a_reward_model_does_not_read_are_counted():
    row = Conversation([{"role": "user", "content": "?"}, {"role": "assistant", "content": "No."}])
    pair = replace(row, metadata={"rejected": [{"content": "Yes."}], "score": 1.0})
    splits = Splits(train=[row, row, pair])
    assert rows_without_samples(compose("method=reward"), splits) == ["left out: 2 of 3 training rows: no score"]
    assert rows_without_samples(compose("method=sft"), splits) == []
    assert rows_without_samples(compose("method=reward"), Splits(train=[pair])) == []


def test_a_resumed_run_counts_on_in_its_number_format(tmp_path, capsys):
    directory = RunDir(tmp_path)
    assert as_it_began(directory, Device("cpu", "bf16")) == Device("cpu", "bf16")
    resumed = RunDir(tmp_path, run_dir.load_state(tmp_path))
    assert as_it_began(resumed, Device("cpu", "32")) == Device("cpu", "bf16")
    assert as_it_began(resumed, Device("cuda", "32")) == Device("cuda", "32")
    assert "began on cpu in bf16 and goes on on cuda in 32" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["adapter=none", "adapter.r=8", "adapter.use_dora=true"], "adapter=none: adapter.r=8, adapter.use_dora=true"),
        (["adapter=none", "adapter.kind=none"], ""),
        (["adapter=lora", "adapter.r=8", "adapter.lora_dropout=0.1"], ""),
        (["method=dpo", "adapter=lora", "adapter.lora_dropout=0.1"], "method=dpo: adapter.lora_dropout=0.1"),
        (["method=rloo", "method.vf_coef=0.1"], "method=rloo: method.vf_coef=0.1"),
        (["method=ppo", "method.vf_coef=0.1"], ""),
        (
            ["method=reward", "method.loss=pairwise", "method.ranking_coef=0.1"],
            "method.loss=pairwise: method.ranking_coef=0.1",
        ),
        (
            ["method=reward", "method.corruption_ratio=0", "method.corruption_kinds=[misplaced]"],
            "method.corruption_ratio=0: method.corruption_kinds=[misplaced]",
        ),
        (
            ["dataset=jsonl", "dataset.path=README.md", "dataset.splits=[train]"],
            "a local file: dataset.splits=[train]",
        ),
    ],
)
def test_options_that_nothing_reads_are_named(overrides, line):
    assert unused_options(compose(*overrides), overrides) == ([f"not used with {line}"] if line else [])
