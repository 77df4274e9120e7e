"""What a kill kept from the store is sent when the run goes on, and nothing is sent twice."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from manners.errors import MannersError
from manners.tracking import async_writer, sync
from manners.tracking.logger import MLflowLogger
from tests.configs import changed


class Store:
    """MLflow's client, as far as a tracker knows it. ``failing`` is a server that has gone."""

    def __init__(self, failing=False):
        self.metrics, self.tables, self.tags, self.files, self.ends = [], {}, {}, [], []
        self.failing = failing

    def log_batch(self, run_id, metrics):
        self.answer()
        self.metrics += [(m.key, m.step, m.value) for m in metrics]

    def answer(self):
        if self.failing:
            raise ConnectionError

    def list_artifacts(self, run_id, path=None):
        self.answer()
        return [SimpleNamespace(path=name) for name in self.tables if name.rpartition("/")[0] == (path or "")]

    def log_table(self, run_id, columns, name):
        self.tables.setdefault(name, []).append(columns)

    def log_artifact(self, run_id, path, folder):
        self.answer()
        self.files.append((Path(path).read_text(), folder))

    def set_tag(self, run_id, key, value):
        self.answer()
        self.tags[run_id, key] = value

    def set_terminated(self, run_id, status):
        self.answer()
        self.ends.append(status)


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """The end of a run waits for no server."""
    monkeypatch.setattr(async_writer, "PATIENCE", 0.0)


def test_the_store_is_brought_up_to_the_file_and_repeated_steps_are_left_out(tmp_path):
    """It was killed after step 3 was written, of which the store had step 1; it goes on from step 2."""
    file = tmp_path / "metrics.jsonl"
    first = MLflowLogger(Store(failing=True), "id", tmp_path, {})
    for step in (1, 2, 3):
        first.log({"loss": step / 10, "rate": 1.0} if step < 3 else {"loss": 0.3}, step)
    first.close("KILLED")
    store = Store()
    again = MLflowLogger(store, "id", tmp_path, {"loss": {1}, "rate": {1}})
    for step in (2, 3, 4):
        again.log({"loss": 9.0, "rate": 1.0} if step < 4 else {"loss": 0.4, "rate": 1.0}, step)
    again.close("FINISHED")
    assert sorted(store.metrics) == [
        *(("loss", step, pytest.approx(step / 10)) for step in (2, 3, 4)),
        *(("rate", step, 1.0) for step in (2, 3, 4)),
    ]
    assert store.ends == ["FINISHED"]
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(r["step"], r.get("loss")) for r in written] == [(1, 0.1), (2, 0.2), (3, 0.3), (3, None), (4, 0.4)]


def test_a_table_is_kept_once(tmp_path):
    store = Store()
    tracker = MLflowLogger(store, "id", tmp_path, {})
    for _ in range(2):
        tracker.table([{"a": 1}, {"a": 2}], "rollouts/1.json")
        tracker.table([{"a": 3}], "worst.json")
        tracker.table([], "nothing.json")
    tracker.close("FINISHED")
    assert store.tables == {"rollouts/1.json": [{"a": [1, 2]}], "worst.json": [{"a": [3]}]}


def test_what_an_absent_server_did_not_hear_is_kept_with_the_command_that_sends_it(tmp_path, capsys):
    tracker = MLflowLogger(Store(failing=True), "id", tmp_path, {})
    (tmp_path / "report.md").write_text("better")
    tracker.log({"loss": 1.0}, 1)
    tracker.tag(summary="better")
    tracker.artifact(tmp_path / "report.md")
    tracker.table([{"a": 1}], "rows.json")
    tracker.close("FINISHED")
    assert f"python -m manners.tracking.sync {tmp_path}" in capsys.readouterr().err
    store = Store()
    for sent in ((1, 4), (0, 0)):  # the second time there is nothing left
        again = async_writer.AsyncMLflowWriter(
            store, "id", tmp_path, {"loss": {step for _, step, _ in store.metrics}}, over=True
        )
        assert again.behind == sent
        assert again.close()
    assert store.metrics == [("loss", 1, 1.0)] and store.tags == {("id", "manners.summary"): "better"}
    assert store.files == [("better", None)] and store.tables == {"rows.json": [{"a": [1]}]}
    assert store.ends == ["FINISHED"]


def test_replay_names_what_is_no_run(tmp_path):
    with pytest.raises(MannersError, match="is not the folder of a run"):
        sync.sync_run(tmp_path, None)
    (tmp_path / "run.json").write_text('{"mlflow_run_id": "1"}')
    with pytest.raises(MannersError, match="there is no store at sqlite:///nowhere"):
        sync.sync_run(tmp_path, "sqlite:///nowhere/at/all.db")


def test_a_server_that_comes_back_hears_all_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(async_writer, "PATIENCE", 30.0)
    store = Store(failing=True)
    tracker = MLflowLogger(store, "id", tmp_path, {})
    for step in range(100):
        tracker.log({"loss": float(step)}, step)
    tracker.tag(summary="late")
    store.failing = False
    tracker.close("FINISHED")
    assert store.metrics == [("loss", step, float(step)) for step in range(100)]
    assert store.tags and store.ends and not (tmp_path / "unsent.jsonl").exists()


def test_what_the_server_refuses_holds_nothing_up_and_is_told(tmp_path, capsys):
    class Refuses(Store):
        def log_batch(self, run_id, metrics):
            raise MlflowException("no such name: @", error_code=INVALID_PARAMETER_VALUE)

    store = Refuses()
    tracker = MLflowLogger(store, "id", tmp_path, {})
    tracker.log({"@": 1.0}, 1)
    tracker.close("FINISHED")
    assert store.ends == ["FINISHED"]
    assert "refused 1 things, first: metrics (no such name: @)" in capsys.readouterr().err


def test_a_line_that_a_full_disk_cut_is_said_again(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "loss": 1.0}\n{"step": 2, "ti')
    store = Store()
    tracker = MLflowLogger(store, "id", tmp_path, {})
    tracker.log({"loss": 2.0}, 2)
    tracker.close("FINISHED")
    assert store.metrics == [("loss", 1, 1.0), ("loss", 2, 2.0)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_kill_before_the_run_was_described_leaves_no_gap(tmp_path, monkeypatch):
    """The MLflow run is there, its params are not: the next start gives them."""
    import mlflow

    from manners.runtime import run_dir
    from manners.tracking import logger

    cfg = changed(f"output_dir={tmp_path}", "tracking.system_metrics=false")

    def start():
        with run_dir.acquire(cfg, "digest") as folder, logger.open_run(cfg, folder, 3, "digest", {}, ["seed=1"]) as t:
            return t.run_id

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(logger, "describe_run", killed)
        start()
    run_id = start()
    client = mlflow.MlflowClient(cfg.tracking.uri)
    (run,) = client.search_runs([client.get_run(run_id).info.experiment_id])
    assert run.data.params["seed"] == "1" and run.data.tags["manners.method"] == "sft"
