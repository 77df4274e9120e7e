"""What a new study tells MLflow's pages."""

import json

import mlflow
import pytest
from omegaconf import OmegaConf

from manners.tracking import logger, store, ui
from tests.configs import changed


def test_a_new_experiment_opens_on_its_runs_with_columns_that_runs_have(tmp_path):
    cfg = changed(f"output_dir={tmp_path}")
    client = mlflow.MlflowClient(cfg.tracking.uri)
    number = store.experiment_id(client, cfg)
    assert store.experiment_id(client, cfg) == number
    tags = client.get_experiment(number).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert (
        f"#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey={ui.VIEW}"
        in (tags["mlflow.note.content"])
    )
    view = json.loads(tags[f"mlflow.sharedViewState.{ui.VIEW}"])
    assert isinstance(view["createdAt"], int)
    assert json.loads(view["state"]) == {"selectedColumns": list(ui.COLUMNS)}
    logged = logger.flatten_params(OmegaConf.to_container(cfg))
    assert {c.split("`")[1] for c in ui.COLUMNS if c.startswith("params.")} <= set(logged)


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("# name\n\n| a |\n| - |\n", "| a |\n| - |"),
        ("no heading\n# one below", "no heading\n# one below"),
        ("# name\n\n" + "a line of fifty characters, with its end at the end\n" * 200, None),
    ],
)
def test_a_description_has_no_second_heading_and_ends_with_a_whole_line(told, shown):
    """MLflow writes the run's name above it."""
    sent = []
    tracker = object.__new__(logger.MLflowLogger)
    tracker.outbox = type("Outbox", (), {"put": lambda self, what: sent.append(what["value"])})()
    tracker.describe(told)
    if shown is None:
        assert len(sent[0]) <= logger.LONGEST_NOTE and set(sent[0].splitlines()) == {told.splitlines()[2]}
    else:
        assert sent == [shown]
