"""`python train.py method=kto` end to end, on pairs and on labeled rows, resumed, and what it says of the labels."""

import json

import pytest

from manners.config.compose import plan_run, register
from manners.data.types import Conversation
from manners.pipeline import dependencies, run
from manners.pipeline.stages.preference import label_lines
from tests.commands import (
    SHORT_STAGE,
    SMALL,
    Command,
    find_run,
    kill_at_step,
    mlflow_runs,
    read_records,
    small_strictbot,
    train,
    train_in_process,
)
from tests.configs import compose, tiny

STEPS = 6
KTO = [
    "method=kto",
    *SMALL,
    f"policy_run_overrides=[{SHORT_STAGE}]",
    f"method.max_steps={STEPS}",
    "method.per_device_train_batch_size=4",
    "method.eval_steps=3",
    "method.save_steps=2",
    "method.logging_steps=1",
]
ADAPTER = "model/adapter_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_strictbot(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def out(tmp_path_factory, data):
    """The output directory of the command, which trains the SFT policy first."""
    out = tmp_path_factory.mktemp("out")
    train_in_process(*KTO, *data, f"output_dir={out}")
    return out


def test_kto_run_is_linked_logged_and_reported(out):
    folder, sft = find_run(out, "manners-kto-tiny-*"), find_run(out, "manners-sft-tiny-*")
    assert [line.split()[1] for line in (folder / "lineage.md").read_text().splitlines()] == [sft.name, folder.name]
    names = {p.name for p in folder.iterdir()}
    assert {"before_after.md", "after.json", "curves.png", "lineage.md", "model"} <= names
    assert not [name for name in names if name.startswith(("best", "checkpoint"))]
    client, runs = mlflow_runs(out)
    logged = runs[folder.name].data.metrics.keys()
    rewards = {f"train/rewards/{name}" for name in ("margins", "chosen", "rejected")}
    assert logged >= rewards | {"train/loss", "train/kl", "eval/loss", "eval/kl", "before/loss", "after/loss"}
    for name, steps in {"train/rewards/margins": range(1, STEPS + 1), "eval/loss": [3, 6], "after/loss": [6]}.items():
        history = client.get_metric_history(runs[folder.name].info.run_id, name)
        assert sorted(m.step for m in history) == list(steps), name  # both labels are in every batch
    losses = [r["train/loss"] for r in read_records(folder / "metrics.jsonl") if "train/loss" in r]
    assert losses[0] == pytest.approx(0.5, abs=1e-5)  # the policy equals the reference


def test_killed_run_resumes_to_the_same_result(out, data):
    command = [*KTO, *data, f"output_dir={out}", "run_name=resumed"]
    folder = kill_at_step(Command(*command), out, "resumed*", "train/loss", 4)
    assert "resuming from the last checkpoint" in train(*command)
    assert (folder / ADAPTER).read_bytes() == (find_run(out, "manners-kto*") / ADAPTER).read_bytes()
    assert len(list(out.glob("runs/manners-sft*"))) == 1  # the SFT policy is reused


def test_rows_with_labels_train_on_both_and_report_the_good(tmp_path):
    """Fully trained, without SFT before; an undesirable held-out row is left out of the reports."""
    rows = [
        {"prompt": f"What is {i}?", "reply": "A number." if i % 2 else "No.", "label": bool(i % 2), "split": split}
        for i, split in enumerate(["train"] * 10 + ["validation"] * 4 + ["test"] * 4)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["dataset=jsonl", f"dataset.path={tmp_path / 'rows.jsonl'}", "adapter=none", "policy_from=none"]
    printed = train(*KTO, *data, f"output_dir={tmp_path}")
    assert "training replies: 5 desirable, 5 undesirable" in printed and "is false" not in printed
    folder = find_run(tmp_path, "manners-kto*")
    assert (folder / "model" / "model.safetensors").exists()
    assert json.loads((folder / "after.json").read_text())["num_prompts"] == 2
    losses = [r["train/loss"] for r in read_records(folder / "metrics.jsonl") if "train/loss" in r]
    assert losses[0] == pytest.approx(0.5, abs=1e-5) != losses[-1]


def labeled(good, bad):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return [Conversation(turns, metadata={"label": label}) for label in [True] * good + [False] * bad]


@pytest.mark.parametrize(
    "good, bad, weights, advice",
    [
        (30, 30, (1, 1), ""),
        (40, 30, (1, 1), ""),  # 4:3
        (10, 20, (2.5, 1), ""),  # 5:4
        (10, 100, (1, 1), "are 10 to 100; the paper recommends 1:1 to 4:3, with one of the weights at 1: "
         "method.desirable_weight=11.7"),
        (30, 10, (1, 1), "are 30 to 10; the paper recommends 1:1 to 4:3, with one of the weights at 1: "
         "method.undesirable_weight=2.57"),
        (0, 10, (1, 1), ""),
    ],
)  # fmt: skip
def test_label_lines_recommend_the_weight_of_the_paper(good, bad, weights, advice):
    """Ethayarajh et al. 2024, equation 8: 1 ≤ 11.7 × 10 / 100 = 1.17 ≤ 4/3, and 30 / (2.57 × 10) = 1.17."""
    cfg = compose("method=kto")
    cfg.method.desirable_weight, cfg.method.undesirable_weight = weights
    lines = label_lines(cfg, labeled(good, bad))
    assert lines[0] == f"training replies: {good} desirable, {bad} undesirable"
    assert lines[1:] == ([f"their weighted counts {advice}"] if advice else [])
    unlabeled = Conversation(labeled(1, 0)[0].messages)
    assert "left out: 1 training rows: neither a label nor a pair" in label_lines(cfg, [*labeled(good, bad), unlabeled])


def test_plan_has_the_policy_and_preview_shows_labels(out, data, capsys):
    register()
    spec = plan_run(tiny([*KTO, *data, f"output_dir={out}"]))
    dependencies.print_plan(spec)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["policy", "reuse"], ["kto", "train"]]
    run.show_preview(spec)
    shown = capsys.readouterr().out
    assert "\ndesirable: " in shown and "\nundesirable: " in shown and "training replies: " in shown
