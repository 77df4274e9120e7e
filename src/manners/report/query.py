"""Reads runs, metric histories and artifacts from the tracking store."""

import logging
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manners.errors import MannersError, did_you_mean
from manners.tracking import store
from manners.tracking.traces import EVALUATION_RUN

# The metric by which a method is evaluated during training, and its title in a figure.
EVAL_METRICS = {
    "eval/loss": "held-out loss",
    "eval/scores": "reward of replies to held-out prompts",
}

NO_RUNS = "there are no runs yet. Train one: .venv/bin/python train.py"


@dataclass(frozen=True)
class Run:
    id: str
    name: str
    study: str  # name of the MLflow experiment
    status: str  # MLflow's: FINISHED, FAILED, KILLED, RUNNING, SCHEDULED
    started: int  # milliseconds since 1970
    params: dict[str, str]
    metrics: dict[str, float]  # the last value of each
    tags: dict[str, str]

    @property
    def method(self) -> str:
        """The training method, or another kind of run, such as ``evaluate``."""
        return self.tags.get("manners.method") or self.params.get("method.name", "other")

    @property
    def seed(self) -> str:
        """The seed as text; empty if the run has none."""
        return self.params.get("seed", "")


def connect_store(uri: str) -> Any:
    """An MLflow client of the store. Raises MannersError if the store does not exist or cannot be read."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"  # MLflow prints one per file
    try:
        client = store.existing_store(uri)
        if client is not None:
            client.search_experiments(max_results=1)
    except MannersError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MannersError(f"--uri {uri}: this store cannot be read ({reason}).") from error
    if client is None:
        raise MannersError(f"--uri {uri}: {NO_RUNS}")
    return client


def query_runs(client: Any, study: str | None = None) -> list[Run]:
    """All runs of the store or of one ``study``, oldest first. Raises MannersError if there are none."""
    studies = {e.experiment_id: e.name for e in all_pages(client.search_experiments)}
    if study is not None:
        if study not in studies.values():
            raise MannersError(f"--study {study}: the store has no such study. {did_you_mean(study, studies.values())}")
        studies = {number: name for number, name in studies.items() if name == study}
    runs = [
        Run(
            r.info.run_id, r.info.run_name or r.info.run_id, studies[r.info.experiment_id], r.info.status,
            r.info.start_time or 0, r.data.params, r.data.metrics, r.data.tags,
        )
        for r in all_pages(client.search_runs, list(studies))
        if not EVALUATION_RUN.items() <= r.data.tags.items()  # the traces of one model of an evaluation
    ]  # fmt: skip
    if not runs:
        raise MannersError(NO_RUNS)
    return sorted(runs, key=lambda r: (r.started, r.name))


def all_pages(search: Any, *args: Any) -> list[Any]:
    """The results of all pages of an MLflow search."""
    page = search(*args)
    results = list(page)
    while page.token:
        page = search(*args, page_token=page.token)
        results += page
    return results


def eval_history(client: Any, run: Run) -> tuple[str, list[tuple[int, float]]]:
    """The name of the run's eval metric and its (step, value) pairs; ("", []) if the run has none."""
    name = next((n for n in EVAL_METRICS if n in run.metrics), "")
    values = {m.step: m.value for m in client.get_metric_history(run.id, name)} if name else {}
    return name, sorted((step, value) for step, value in values.items() if math.isfinite(value))


def read_artifacts(client: Any, run: Run, names: tuple[str, ...]) -> dict[str, bytes]:
    """The contents of those of the named files that the run has, in the order of ``names``."""
    existing = {f.path for f in client.list_artifacts(run.id)}
    with tempfile.TemporaryDirectory() as folder:
        return {n: Path(client.download_artifacts(run.id, n, folder)).read_bytes() for n in names if n in existing}
