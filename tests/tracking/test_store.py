"""What MLflow's pages show of a new experiment and its runs."""

import json
from dataclasses import fields

import mlflow
import pytest
from omegaconf import OmegaConf

from manners.tracking import logger, store
from tests.configs import changed


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
