"""A search as it is typed, its jobs trained for real."""

import json

from mlflow import MlflowClient

from tests.commands import SMALL, small_strictbot, train


def test_sweep_is_one_run_with_nested_jobs_and_is_not_repeated(tmp_path):
    out = tmp_path / "out"
    search = [
        *("-m", *small_strictbot(tmp_path), *SMALL, f"output_dir={out}", "method.max_steps=3", "method.eval_steps=1"),
        *("sweep.sampler=tpe", "sweep.trials=2", "method.learning_rate=tag(log,interval(1e-4,1e-2))"),
    ]
    first = train(*search)
    assert "ended before" not in first
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = [r for r in runs if "manners.sweep" in r.data.tags]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 2 and {r.info.status for r in runs} == {"FINISHED"}
    best = min(json.loads(f.read_text())["metric"] for f in (out / "runs").glob("*/run.json"))
    assert parent.data.metrics["best/eval/loss"] == best
    assert "run it again: python train.py" in first
    again = train(*search)
    assert again.count("ended before") == 2
    assert len(client.search_runs([e.experiment_id for e in client.search_experiments()])) == len(runs)
