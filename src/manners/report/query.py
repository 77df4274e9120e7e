"""What the tracking store knows of the runs. Nothing here is in a table's form yet."""

import logging
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manners.errors import MannersError, did_you_mean
from manners.tracking import store

# What a method is judged by while it trains, with what it is called in a figure.
VALIDATION = {
    "eval/loss": "held-out loss",
    "eval/scores": "reward of held-out replies",
}

NONE_YET = "there are no runs yet. Train one: .venv/bin/python train.py"


@dataclass(frozen=True)
class Run:
    id: str
    name: str
    study: str
    status: str  # MLflow's: FINISHED, FAILED, KILLED, RUNNING, SCHEDULED
    started: int  # milliseconds since 1970
    params: dict[str, str]
    metrics: dict[str, float]  # the last of each
    tags: dict[str, str]

    @property
    def method(self) -> str:
        return self.tags.get("manners.method") or self.params.get("method.name", "other")

    @property
    def seed(self) -> str:
        return self.params.get("seed", "")


def connect_store(uri: str) -> Any:
    """MLflow's client of the store. Raises MannersError where there is none."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"  # one a file
    try:
        client = store.existing_store(uri)
        if client is not None:
            client.search_experiments(max_results=1)
    except MannersError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MannersError(f"--uri {uri}: this store cannot be read ({first}).") from error
    if client is None:
        raise MannersError(f"--uri {uri}: {NONE_YET}")
    return client


def query_runs(client: Any, study: str | None = None) -> list[Run]:
    """All runs of the store, or those of one ``study``, in the order in which they began."""
    studies = {e.experiment_id: e.name for e in all_pages(client.search_experiments)}
    if study is not None:
        if study not in studies.values():
            raise MannersError(f"--study {study}: the store has no such study. {did_you_mean(study, studies.values())}")
        studies = {number: name for number, name in studies.items() if name == study}
    found = [
        Run(
            r.info.run_id, r.info.run_name or r.info.run_id, studies[r.info.experiment_id], r.info.status,
            r.info.start_time or 0, r.data.params, r.data.metrics, r.data.tags,
        )
        for r in all_pages(client.search_runs, list(studies))
    ]  # fmt: skip
    if not found:
        raise MannersError(NONE_YET)
    return sorted(found, key=lambda r: (r.started, r.name))


def all_pages(search: Any, *args: Any) -> list[Any]:
    """All pages of a search."""
    page = search(*args)
    found = list(page)
    while page.token:
        page = search(*args, page_token=page.token)
        found += page
    return found


def validation_curve(client: Any, run: Run) -> tuple[str, list[tuple[int, float]]]:
    """The validation metric's name, and its value by step; ("", []) where the run has none."""
    name = next((n for n in VALIDATION if n in run.metrics), "")
    values = {m.step: m.value for m in client.get_metric_history(run.id, name)} if name else {}
    return name, sorted((step, value) for step, value in values.items() if math.isfinite(value))


def read_artifacts(client: Any, run: Run, names: tuple[str, ...]) -> dict[str, bytes]:
    """Those of the named files that the run has, in the order of ``names``."""
    there = {f.path for f in client.list_artifacts(run.id)}
    with tempfile.TemporaryDirectory() as folder:
        return {n: Path(client.download_artifacts(run.id, n, folder)).read_bytes() for n in names if n in there}
