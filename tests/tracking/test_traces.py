"""Replies as traces: what MLflow has of them, in a run for each model, and that nothing of the process is changed."""

import os

import mlflow
import pytest

from manners.tracking import traces
from manners.tracking.traces import AssessedReply, Assessment
from tests import stores


@pytest.fixture
def logged(tmp_path, monkeypatch):
    """Two models' replies, logged to a store of its own."""
    uri = stores.absolute_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(traces, "MAX_TRACES", 2)
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("e")
    parent = client.create_run(experiment).info.run_id
    ask = [{"role": "user", "content": "Why?"}]
    said = [("fits", Assessment(True, "rules")), ("reward", Assessment(0.5, "reward model"))]
    votes = [("vote", Assessment("better", "Ann", by_person=True)), ("vote", Assessment("tie", "Bo", by_person=True))]
    replies = {"before": [AssessedReply(ask, "So.")] * 3, "after": [AssessedReply(ask, "Because.", said + votes)]}
    state = (mlflow.get_tracking_uri(), dict(os.environ))
    run_ids = traces.log_traces(uri, experiment, parent, replies)
    assert (mlflow.get_tracking_uri(), dict(os.environ)) == state
    return client, experiment, parent, run_ids


def test_each_model_is_an_evaluation_run_below_the_whole(logged):
    client, _, parent, run_ids = logged
    for name, run_id in run_ids.items():
        run = client.get_run(run_id)
        assert (run.info.run_name, run.info.status) == (name, "FINISHED")
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert run.data.tags["mlflow.runType"] == "genai_evaluate"


def test_a_run_of_another_experiment_starts_afterwards(logged):
    """As in a notebook that evaluates first and trains then."""
    client, *_ = logged
    other = client.create_run(client.create_experiment("other")).info.run_id
    mlflow.set_tracking_uri(client.tracking_uri)
    try:
        with mlflow.start_run(other) as run:
            assert run.info.run_id == other
    finally:
        mlflow.set_tracking_uri(None)


def test_a_trace_has_messages_reply_and_assessments(logged):
    client, experiment, _, run_ids = logged
    found = {
        name: client.search_traces(locations=[experiment], run_id=run_id, max_results=9)
        for name, run_id in run_ids.items()
    }
    assert {name: len(of) for name, of in found.items()} == {"before": 2, "after": 1}  # of three, MAX_TRACES
    (trace,) = found["after"]
    assert trace.data.spans[0].inputs == {"messages": [{"role": "user", "content": "Why?"}]}
    assert trace.data.spans[0].outputs == "Because."
    given = sorted((a.name, a.value, a.source.source_type, a.source.source_id) for a in trace.info.assessments)
    assert given == [
        ("fits", True, "CODE", "rules"),
        ("reward", 0.5, "CODE", "reward model"),
        ("vote", "better", "HUMAN", "Ann"),
        ("vote", "tie", "HUMAN", "Bo"),
    ]
