"""What a kill left unsent is sent when the run resumes, and nothing is sent twice."""

import json
import os
import shlex
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.tracking import fluent
from mlflow.utils.validation import _validate_metric_name

from manners.config import validate
from manners.data.loading import Splits
from manners.errors import MannersError
from manners.runtime import run_dir
from manners.tracking import async_writer, store, sync
from manners.tracking import logger as logger_module
from manners.tracking.logger import MLflowLogger
from tests import stores
from tests.configs import changed


class FakeClient:
    """MLflow's client, as far as the logger uses it. ``failing`` is a server that is away."""

    def __init__(self, failing=False):
        self.metrics, self.tables, self.tags, self.files, self.ends = [], {}, {}, [], []
        self.failing = failing

    def log_batch(self, run_id, metrics):
        self.check_reachable()
        self.metrics += [(m.key, m.step, m.value) for m in metrics]

    def check_reachable(self):
        if self.failing:
            raise ConnectionError

    def list_artifacts(self, run_id, path=None):
        self.check_reachable()
        return [SimpleNamespace(path=name) for name in self.tables if name.rpartition("/")[0] == (path or "")]

    def log_table(self, run_id, columns, name):
        self.tables.setdefault(name, []).append(columns)

    def log_artifact(self, run_id, path, folder):
        self.check_reachable()
        self.files.append((Path(path).read_text(), folder))

    def set_tag(self, run_id, key, value):
        self.check_reachable()
        self.tags[run_id, key] = value

    def set_terminated(self, run_id, status):
        self.check_reachable()
        self.ends.append(status)


@pytest.fixture(autouse=True)
def no_close_timeout(monkeypatch):
    """The end of a run does not wait for a server."""
    monkeypatch.setattr(async_writer, "CLOSE_TIMEOUT", 0.0)


def test_resumed_run_sends_unsent_steps_and_skips_repeated_ones(tmp_path):
    """Killed after step 3 was written, of which the store had step 1; it resumes from step 2."""
    first = MLflowLogger(FakeClient(failing=True), "id", tmp_path, {})
    for step in (1, 2, 3):
        first.log({"loss": step / 10, "rate": 1.0} if step < 3 else {"loss": 0.3}, step)
    first.close("KILLED")
    client = FakeClient()
    resumed = MLflowLogger(client, "id", tmp_path, {"loss": {1}, "rate": {1}})
    for step in (2, 3, 4):
        resumed.log({"loss": 9.0, "rate": 1.0} if step < 4 else {"loss": 0.4, "rate": 1.0}, step)
    resumed.close("FINISHED")
    assert sorted(client.metrics) == [
        *(("loss", step, pytest.approx(step / 10)) for step in (2, 3, 4)),
        *(("rate", step, 1.0) for step in (2, 3, 4)),
    ]
    assert client.ends == ["FINISHED"]
    records = async_writer.read_records(tmp_path / "metrics.jsonl")
    assert [(r["step"], r.get("loss")) for r in records] == [(1, 0.1), (2, 0.2), (3, 0.3), (3, None), (4, 0.4)]


def test_table_is_logged_once(tmp_path):
    client = FakeClient()
    logger = MLflowLogger(client, "id", tmp_path, {})
    for _ in range(2):
        logger.table([{"a": 1}, {"a": 2}], "rollouts/1.json")
        logger.table([{"a": 3}], "worst.json")
        logger.table([], "nothing.json")
    logger.close("FINISHED")
    assert client.tables == {"rollouts/1.json": [{"a": [1, 2]}], "worst.json": [{"a": [3]}]}


def test_unsent_records_are_kept_with_the_command_to_send_them(tmp_path, capsys):
    logger = MLflowLogger(FakeClient(failing=True), "id", tmp_path, {})
    (tmp_path / "report.md").write_text("better")
    logger.log({"loss": 1.0}, 1)
    logger.tag(summary="better")
    logger.artifact(tmp_path / "report.md")
    logger.table([{"a": 1}], "rows.json")
    logger.close("FINISHED")
    assert f"python -m manners.tracking.sync {tmp_path}" in capsys.readouterr().err
    client = FakeClient()
    for backlog in ((1, 4), (0, 0)):  # the second time there is nothing left
        known = {"loss": {step for _, step, _ in client.metrics}}
        writer = async_writer.AsyncMLflowWriter(client, "id", tmp_path, known, run_ended=True)
        assert writer.backlog == backlog
        assert writer.close()
    assert client.metrics == [("loss", 1, 1.0)] and client.tags == {("id", "manners.summary"): "better"}
    assert client.files == [("better", None)] and client.tables == {"rows.json": [{"a": [1]}]}
    assert client.ends == ["FINISHED"]


def test_sync_refuses_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(MannersError, match="is not the directory of a run"):
        sync.sync_run(tmp_path, None)
    (tmp_path / "run.json").write_text('{"mlflow_run_id": "1"}')
    with pytest.raises(MannersError, match="there is no store at sqlite:///nowhere"):
        sync.sync_run(tmp_path, "sqlite:///nowhere/at/all.db")
    (tmp_path / "config.yaml").write_text("tracking: {uri: 'postgresql://me:***@host/db'}")
    with pytest.raises(MannersError, match="does not keep the password of its store: --uri URI"):
        sync.sync_run(tmp_path, None)


def test_sync_prints_no_password_and_names_a_deleted_run(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text('{"mlflow_run_id": "1a"}')
    client, run = FakeClient(), SimpleNamespace(info=SimpleNamespace(), data=SimpleNamespace(metrics={}))
    client.get_run = lambda _id: run
    monkeypatch.setattr(sync.store, "existing_store", lambda _uri: client)
    run.info.lifecycle_stage = "active"
    assert sync.sync_run(tmp_path, "postgresql://me:secret@host/x").endswith("sent to postgresql://me:***@host/x")
    run.info.lifecycle_stage = "deleted"
    with pytest.raises(MannersError, match=r"MLFLOW_TRACKING_URI=\S+ mlflow runs restore --run-id 1a") as error:
        sync.sync_run(tmp_path, "postgresql://me:secret@host/x")
    assert "secret" not in str(error.value)


def test_server_that_comes_back_receives_all_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(async_writer, "CLOSE_TIMEOUT", 30.0)
    client = FakeClient(failing=True)
    logger = MLflowLogger(client, "id", tmp_path, {})
    for step in range(100):
        logger.log({"loss": float(step)}, step)
    logger.tag(summary="late")
    client.failing = False
    logger.close("FINISHED")
    assert client.metrics == [("loss", step, float(step)) for step in range(100)]
    assert client.tags and client.ends and not (tmp_path / "unsent.jsonl").exists()


def test_refused_records_delay_nothing_and_are_reported(tmp_path, capsys):
    class RefusingClient(FakeClient):
        def log_batch(self, run_id, metrics):
            raise MlflowException("no such name: @", error_code=INVALID_PARAMETER_VALUE)

    client = RefusingClient()
    logger = MLflowLogger(client, "id", tmp_path, {})
    logger.log({"@": 1.0}, 1)
    logger.close("FINISHED")
    assert client.ends == ["FINISHED"]
    assert "refused 1 records, first: metrics (no such name: @)" in capsys.readouterr().err


def test_refused_value_costs_no_other_and_is_kept(tmp_path):
    class RefusingClient(FakeClient):
        def log_batch(self, run_id, metrics):
            if any(m.key == "@" for m in metrics):
                raise MlflowException("no such name: @", error_code=INVALID_PARAMETER_VALUE)
            super().log_batch(run_id, metrics)

        def set_tag(self, run_id, key, value):
            raise MlflowException("no such tag", error_code=INVALID_PARAMETER_VALUE)

    client = RefusingClient()
    logger = MLflowLogger(client, "id", tmp_path, {})
    for step, names in enumerate([["a"], ["@", "c"], ["b"]]):
        logger.log(dict.fromkeys(names, 1.0), step)
    logger.tag(summary="x")
    logger.close("FINISHED")
    assert sorted(name for name, *_ in client.metrics) == ["a", "b", "c"]
    refused = [json.loads(line) for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert [set(record) - {"time", "step"} for record in refused] == [{"@"}, {"tag", "value"}]


def test_line_cut_by_a_full_disk_is_logged_again(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "loss": 1.0}\n{"step": 2, "ti')
    client = FakeClient()
    logger = MLflowLogger(client, "id", tmp_path, {})
    logger.log({"loss": 2.0}, 2)
    logger.close("FINISHED")
    assert client.metrics == [("loss", 1, 1.0), ("loss", 2, 2.0)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def start_run(cfg, step=1, overrides=("seed=1",)):
    """Log one step, as a run that was killed afterwards. Returns the id of the MLflow run, and the run directory."""
    with (
        run_dir.acquire(cfg, {"data": "digest"}) as directory,
        logger_module.open_run(cfg, directory, Splits(), "digest", {}, list(overrides)) as logger,
    ):
        logger.log({"loss": step / 10}, step)
        return logger.run_id, directory.path


def config(tmp_path, *more):
    return changed(f"output_dir={tmp_path}", "tracking.system_metrics=false", *more)


def losses(cfg, run_id):
    client = mlflow.MlflowClient(store.absolute_uri(cfg.tracking.uri))
    return [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")]


def lose_uri(cfg, run_id):
    cfg.tracking.uri = f"sqlite:///{cfg.output_dir}/other.db"


def delete_run(cfg, run_id):
    mlflow.MlflowClient(cfg.tracking.uri).delete_run(run_id)


@pytest.mark.parametrize("lose", [lose_uri, delete_run])
def test_run_that_the_store_lost_is_sent_anew(tmp_path, capsys, lose):
    """Its metrics come from the run directory, and the run goes on."""
    cfg = config(tmp_path)
    old, path = start_run(cfg)
    lose(cfg, old)
    new, same_path = start_run(cfg, step=2)
    assert new != old and same_path == path
    assert "no longer has this run: a new MLflow run gets all its metrics" in capsys.readouterr().out
    assert losses(cfg, new) == [(1, 0.1), (2, 0.2)]
    assert mlflow.MlflowClient(cfg.tracking.uri).get_run(new).data.params["seed"] == "1"
    assert start_run(cfg, step=3)[0] == new  # and is found from then on


def test_experiment_and_run_that_a_notebook_has_active_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # as it is afterwards, whatever set_experiment does
    cfg, uri = config(tmp_path), stores.absolute_uri(f"sqlite:///{tmp_path}/notebook.db")
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("notebook")
    try:
        with mlflow.start_run() as outer:
            run_id, _ = start_run(cfg)
            assert mlflow.active_run().info.run_id == outer.info.run_id
            mlflow.log_metric("later", 1.0)
        assert mlflow.MlflowClient(uri).get_run(outer.info.run_id).info.status == "FINISHED"
        own = mlflow.MlflowClient(store.absolute_uri(cfg.tracking.uri)).get_run(run_id)
        assert own.info.status == "FINISHED" and "mlflow.parentRunId" not in own.data.tags
        assert mlflow.MlflowClient(uri).get_run(outer.info.run_id).data.metrics == {"later": 1.0}
        assert mlflow.start_run().info.experiment_id == outer.info.experiment_id
    finally:
        mlflow.end_run()
        mlflow.set_tracking_uri(None)
        fluent._active_experiment_id = None


def test_run_id_of_the_environment_is_left_alone(tmp_path, monkeypatch, capsys):
    cfg = config(tmp_path)
    client, experiment = store.open_experiment(cfg)
    foreign = client.create_run(experiment, run_name="finished").info.run_id
    client.set_terminated(foreign)
    monkeypatch.setenv("MLFLOW_RUN_ID", foreign)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "elsewhere")
    own, path = start_run(cfg)
    before = client.get_run(foreign)
    assert own != foreign and (before.info.run_name, before.info.status) == ("finished", "FINISHED")
    assert not [tag for tag in before.data.tags if tag.startswith("manners")]
    run = client.get_run(own)
    assert (run.info.run_name, run.info.experiment_id) == (path.name, experiment)
    assert "MLFLOW_RUN_ID, MLFLOW_EXPERIMENT_NAME in the environment: ignored" in capsys.readouterr().out


def test_store_of_a_run_is_not_left_in_the_environment(tmp_path, monkeypatch):
    """The next job of a sweep in this process would log there, whatever its own output_dir."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    start_run(config(tmp_path))
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_password_of_the_store_is_kept_nowhere(tmp_path, monkeypatch, capfd):
    """A SQLite store stands in for the server that the URI names."""
    uri = "postgresql://me:s3cret@host/db?password=s3cret"
    local = f"sqlite:///{tmp_path}/mlflow.db"
    stores.copy_empty_store(tmp_path / "mlflow.db")
    monkeypatch.setattr(store, "absolute_uri", lambda _: local)
    run_id, _ = start_run(config(tmp_path, f"tracking.uri={uri}"), overrides=[f"tracking.uri={uri}"])
    run = mlflow.MlflowClient(local).get_run(run_id)
    assert run.data.params["tracking.uri"] == "postgresql://me:***@host/db?password=***"
    assert run.data.tags["manners.overrides"] == shlex.quote("tracking.uri=postgresql://me:***@host/db?password=***")
    texts = [f.read_bytes() for f in tmp_path.rglob("*") if f.is_file() and f.name != "code.diff"]
    assert len(texts) > 4 and not any(b"s3cret" in text for text in texts)  # the database is one of them
    assert "s3cret" not in "".join(capfd.readouterr())


def test_kill_before_the_description_leaves_no_gap(tmp_path, monkeypatch):
    """The MLflow run exists without its params: the next start logs them."""
    cfg = config(tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(logger_module, "describe_run", killed)
        start_run(cfg)
    run_id, _ = start_run(cfg)
    client = mlflow.MlflowClient(cfg.tracking.uri)
    (run,) = client.search_runs([client.get_run(run_id).info.experiment_id])
    assert run.data.params["seed"] == "1" and run.data.tags["manners.method"] == "sft"


@given(st.text(max_size=30) | st.from_regex(r"[\w./ :-]{1,12}", fullmatch=True))
@settings(max_examples=60, deadline=None)
def test_reward_names_are_those_that_mlflow_takes(name):
    try:
        _validate_metric_name(f"reward/{name}")
        accepted = "\n" not in name  # MLflow's pattern lets a last line break pass
    except MlflowException:
        accepted = False
    assert validate.is_metric_name(name) == (accepted and name != "")


def test_a_machine_without_git_has_no_commit_to_log(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert logger_module.git_state() == ("", "")
