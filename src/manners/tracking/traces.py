"""Replies as MLflow traces with assessments, so that its own pages show them and compare models side by side.

Each model is a run of MLflow's type for evaluations, nested under the run of the whole. Its traces are replies with the
messages before them, and with what a judge, a reward or a person said, as ``mlflow.log_feedback`` records it.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from manners.data.types import Message

MAX_TRACES = 100  # of one model; each takes some 60 ms
EVALUATION_RUN = {"mlflow.runType": "genai_evaluate"}


@dataclass(frozen=True)
class Assessment:
    """One value that somebody gave to a reply."""

    value: bool | float | str
    source: str  # the judge's or reward's name, or the annotator's
    by_person: bool = False


@dataclass(frozen=True)
class AssessedReply:
    """A reply to messages, with assessments by name; a name may have several, of several people."""

    messages: list[Message]
    reply: str
    assessments: list[tuple[str, Assessment]] = field(default_factory=list)


def log_traces(
    uri: str, experiment_id: str, parent_run_id: str, models: Mapping[str, Sequence[AssessedReply]]
) -> dict[str, str]:
    """Log at most ``MAX_TRACES`` replies of each model; the ids of the models' runs. ``uri`` is an absolute address.

    Raises MLflow's errors: the caller says what a store does not take.
    """
    import mlflow

    run_ids = {}
    with fluent_store(uri, experiment_id):
        client = mlflow.MlflowClient(uri)
        for model, replies in models.items():
            tags = {"mlflow.runName": model, "mlflow.parentRunId": parent_run_id, **EVALUATION_RUN}
            run_ids[model] = client.create_run(experiment_id, tags=tags).info.run_id
            with mlflow.start_run(run_ids[model], nested=True):  # below one that a notebook has active
                for reply in replies[:MAX_TRACES]:
                    log_trace(reply)
    return run_ids


def log_trace(reply: AssessedReply) -> None:
    """One trace of the active run."""
    import mlflow
    from mlflow.entities import AssessmentSource, AssessmentSourceType

    with mlflow.start_span("reply") as span:
        span.set_inputs({"messages": reply.messages})
        span.set_outputs(reply.reply)
        for name, given in reply.assessments:
            kind = AssessmentSourceType.HUMAN if given.by_person else AssessmentSourceType.CODE
            source = AssessmentSource(source_type=kind, source_id=given.source)
            mlflow.log_feedback(trace_id=span.trace_id, name=name, value=given.value, source=source)


@contextmanager
def fluent_store(uri: str, experiment_id: str) -> Iterator[None]:
    """Point MLflow's fluent functions, which alone write traces, at a store; afterwards all is as it was."""
    import mlflow
    from mlflow.tracking import fluent

    names = ("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")
    before, tracking_uri = {name: os.environ.get(name) for name in names}, mlflow.get_tracking_uri()
    experiment = fluent._active_experiment_id  # else a later run of this process in another experiment is refused
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"  # each trace is in the store before the run ends
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=experiment_id)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(tracking_uri)
        fluent._active_experiment_id = experiment
        logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
