"""What MLflow's pages show of a new experiment and its runs."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from manners.config.compose import register
from manners.errors import MannersError
from manners.runtime.run_dir import find_by_name
from manners.tracking import logger, store
from tests import stores
from tests.configs import changed, compose


def test_new_experiment_has_a_view_with_columns_that_runs_have(tmp_path):
    cfg = changed(f"output_dir={tmp_path}")
    client = mlflow.MlflowClient(cfg.tracking.uri)
    experiment_id = store.experiment_id(client, cfg)
    assert store.experiment_id(client, cfg) == experiment_id
    tags = client.get_experiment(experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    page = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={store.VIEW}"
    assert page in tags["mlflow.note.content"]
    view = json.loads(tags[f"mlflow.sharedViewState.{store.VIEW}"])
    assert isinstance(view["createdAt"], int)
    columns = json.loads(view["state"])["selectedColumns"]
    params = logger.flatten_params(OmegaConf.to_container(cfg))
    assert {c.split("`")[1] for c in columns if c.startswith("params.")} <= set(params)


SERVER = "http:" + "//me:secret@host:5000"
FOLDERS = st.text(st.characters(exclude_categories=["C"], exclude_characters="/"), min_size=1, max_size=20)


@given(FOLDERS.filter(lambda name: name not in (".", "..") and not name.startswith("~")))
@settings(max_examples=60, deadline=None)
def test_sqlalchemy_opens_the_file_of_any_path(tmp_path_factory, name):
    """tracking.uri holds the path as it is; in a URL, SQLAlchemy would read % and ? otherwise."""
    from sqlalchemy.engine import make_url

    path = tmp_path_factory.getbasetemp() / "names" / name[:60] / "mlflow.db"
    assert (
        make_url(stores.original_absolute_uri(f"sqlite:///{path}")).database
        == str(path)
        == str(store.sqlite_path(f"sqlite:///{path}"))
    )
    assert path.parent.is_dir()


def test_store_and_artifacts_lie_where_output_dir_says(tmp_path):
    name = "50%20 a?b=c#d"
    cfg = changed(f"output_dir={tmp_path / name}")
    client, experiment = store.open_experiment(cfg)
    run_id = client.create_run(experiment).info.run_id
    (tmp_path / name / "file.txt").write_text("x")
    client.log_artifact(run_id, str(tmp_path / name / "file.txt"))
    assert [f.path for f in store.existing_store(cfg.tracking.uri).list_artifacts(run_id)] == ["file.txt"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in (tmp_path / name).iterdir()} >= {"mlflow.db", "artifacts"}


def test_home_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = compose('output_dir="~/out"')
    assert cfg.output_dir == f"{tmp_path}/out" and cfg.tracking.uri == f"sqlite:///{tmp_path}/out/mlflow.db"
    assert store.sqlite_path("sqlite:///~/x.db") == tmp_path / "x.db"


def test_ui_command_is_quoted_and_without_password(tmp_path, monkeypatch):
    command = store.ui_command(f"sqlite:///{tmp_path}/a b/mlflow.db")
    assert command.endswith(f"mlflow ui --backend-store-uri 'sqlite:///{tmp_path}/a b/mlflow.db'")
    assert store.ui_command(SERVER) == SERVER.replace("secret", "***")
    assert "secret" not in store.ui_command("postgresql://me:secret@host/db")
    monkeypatch.chdir(store.ROOT)
    assert store.ui_command("sqlite:///outputs/mlflow.db") == "make ui"
    monkeypatch.chdir(tmp_path)  # where there is no Makefile
    assert f"sqlite:///{tmp_path}/outputs/mlflow.db" in store.ui_command("sqlite:///outputs/mlflow.db")


def test_tracking_uri_of_the_environment_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    assert changed(f"output_dir={tmp_path}").tracking.uri == SERVER
    assert changed("tracking.uri=sqlite:///mine.db").tracking.uri == "sqlite:///mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    register()
    assert changed("output_dir=out").tracking.uri == "sqlite:///out/mlflow.db"


def test_deleted_experiment_is_restored_by_the_command_it_says(tmp_path):
    cfg = OmegaConf.create({"output_dir": str(tmp_path), "tracking": {"uri": f"sqlite:///{tmp_path}/m.db"}})
    cfg.tracking.experiment = "gone"
    client, experiment = store.open_experiment(cfg)
    client.delete_experiment(experiment)
    with pytest.raises(MannersError, match="was deleted in the tracking store") as error:
        store.open_experiment(cfg)
    command = re.search(r"MLFLOW_TRACKING_URI=(\S+) .venv/bin/mlflow (.*);", str(error.value))
    environment = os.environ | {"MLFLOW_TRACKING_URI": command[1]}
    subprocess.run([sys.executable, "-m", "mlflow", *command[2].split()], env=environment, check=True)
    assert store.open_experiment(cfg)[1] == experiment


def test_interrupted_download_is_no_finished_run(tmp_path):
    """Its folder has half a model: it is downloaded again, and not opened by its name."""

    class Client:
        def list_artifacts(self, run_id):
            return [SimpleNamespace(path="model")]

        def download_artifacts(self, run_id, path, folder):
            (Path(folder) / "model").mkdir()
            (Path(folder) / "model" / "config.json").write_text("{}")
            raise KeyboardInterrupt

    run = SimpleNamespace(data=SimpleNamespace(tags={}), info=SimpleNamespace(run_id="a" * 32, status="FINISHED"))
    with pytest.raises(KeyboardInterrupt):
        store.download_run(Client(), run, str(tmp_path))
    folder = tmp_path / "fetched" / ("a" * 32)
    for place in (folder, folder / "model"):
        with pytest.raises(MannersError, match="has not finished"):
            find_by_name(str(place), str(tmp_path))


def test_view_columns_are_metrics_of_the_evaluation():
    from manners.evaluation.evaluate import EvalResult

    columns = {c.split("`")[1].removeprefix("after/") for c in store.VIEW_COLUMNS if c.startswith("metrics.")}
    assert columns <= {f.name for f in fields(EvalResult)}


@pytest.mark.parametrize(
    ("markdown", "shown"),
    [
        ("# name\n\n| a |\n| - |\n", "| a |\n| - |"),
        ("no heading\n# one below", "no heading\n# one below"),
        ("# name\n\n" + "a line of fifty characters, with its end at the end\n" * 200, None),
    ],
)
def test_describe_drops_the_heading_and_keeps_complete_lines(markdown, shown):
    """MLflow shows the name of the run above the description."""
    records = []
    run_logger = object.__new__(logger.MLflowLogger)
    run_logger.writer = type("FakeWriter", (), {"put": lambda self, record: records.append(record)})()
    run_logger.describe(markdown)
    (note,) = (record["value"] for record in records)
    if shown is None:
        assert len(note) <= logger.MAX_NOTE_CHARS and set(note.splitlines()) == {markdown.splitlines()[2]}
    else:
        assert note == shown
