"""What a kill kept from the store is sent when the run goes on, and nothing is sent twice."""

import json
from types import SimpleNamespace

import pytest

from manners.tracking import Tracker
from tests.configs import changed


class Store:
    """MLflow's client, as far as a tracker knows it. ``failing`` is a server that has gone."""

    def __init__(self, failing=False):
        self.metrics, self.tables, self.failing = [], {}, failing

    def log_batch(self, run_id, metrics):
        if self.failing:
            raise ConnectionError
        self.metrics += [(m.key, m.step, m.value) for m in metrics]

    def list_artifacts(self, run_id, path=None):
        return [SimpleNamespace(path=name) for name in self.tables if name.rpartition("/")[0] == (path or "")]

    def log_table(self, run_id, columns, name):
        self.tables.setdefault(name, []).append(columns)


def test_the_store_is_brought_up_to_the_file_and_repeated_steps_are_left_out(tmp_path):
    """It was killed after step 3 was written, of which the store had step 1; it goes on from step 2."""
    file = tmp_path / "metrics.jsonl"
    first = Tracker(Store(failing=True), "id", file, {})
    for step in (1, 2, 3):
        first.log({"loss": step / 10, "rate": 1.0} if step < 3 else {"loss": 0.3}, step)
    first.close()
    assert first.lost == 5
    store = Store()
    again = Tracker(store, "id", file, {"loss": 1, "rate": 1})
    again.catch_up()
    for step in (2, 3, 4):
        again.log({"loss": 9.0, "rate": 1.0} if step < 4 else {"loss": 0.4, "rate": 1.0}, step)
    again.close()
    assert sorted(store.metrics) == [
        *(("loss", step, pytest.approx(step / 10)) for step in (2, 3, 4)),
        *(("rate", step, 1.0) for step in (2, 3, 4)),
    ]
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(r["step"], r.get("loss")) for r in written] == [(1, 0.1), (2, 0.2), (3, 0.3), (3, None), (4, 0.4)]


def test_a_table_is_kept_once(tmp_path):
    store = Store()
    tracker = Tracker(store, "id", tmp_path / "metrics.jsonl", {})
    for _ in range(2):
        tracker.table([{"a": 1}, {"a": 2}], "rollouts/1.json")
        tracker.table([{"a": 3}], "worst.json")
        tracker.table([], "nothing.json")
    tracker.close()
    assert store.tables == {"rollouts/1.json": [{"a": [1, 2]}], "worst.json": [{"a": [3]}]}


def test_what_a_server_does_wrong_is_counted_and_no_more(tmp_path, capsys):
    tracker = Tracker(Store(failing=True), "id", tmp_path / "metrics.jsonl", {})
    tracker.log({"loss": 1.0}, 1)
    tracker.close()
    assert "1 values did not reach the tracking server" in capsys.readouterr().err


def test_a_kill_before_the_run_was_described_leaves_no_gap(tmp_path, monkeypatch):
    """The MLflow run is there, its params are not: the next start gives them."""
    import mlflow

    from manners import lineage, tracking

    cfg = changed(f"output_dir={tmp_path}", "tracking.system_metrics=false")

    def start():
        with lineage.claim(cfg, "digest") as folder, tracking.open_run(cfg, folder, 3, "digest", {}, ["seed=1"]) as t:
            return t.run_id

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking, "describe_run", killed)
        start()
    run_id = start()
    client = mlflow.MlflowClient(cfg.tracking.uri)
    (run,) = client.search_runs([client.get_run(run_id).info.experiment_id])
    assert run.data.params["seed"] == "1" and run.data.tags["manners.method"] == "sft"
