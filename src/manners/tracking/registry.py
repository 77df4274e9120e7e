"""MLflow's model registry: the models of a study by version, the best of them under the alias ``champion``."""

import math
import re
import sys
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from manners.runtime.run_dir import MODEL_DIR
from manners.tracking import store

CHAMPION = "champion"
LONGEST = 4900  # characters of a description; MLflow keeps 5000


@dataclass(frozen=True)
class Registered:
    """A version in the registry, and whether the champion's alias moved to it, with the reason."""

    name: str
    version: str
    champion: bool
    why: str

    def __str__(self) -> str:
        part = "the new" if self.champion else "not the"
        return f"registered as models:/{self.name}/{self.version}, {part} champion: {self.why}"


def register_and_report(cfg: DictConfig, client: Any, run_id: str, metric: float | None) -> None:
    """Register a run under its study's name, and say in one line what happened: the run has ended well in any case."""
    loss = cfg.method.sample_type != "prompt"  # the metric of PPO and RLOO is the held-out reward
    try:
        print(register_model(client, run_id, name_for(cfg), metric, lower_is_better=loss))
    except Exception as error:  # noqa: BLE001  whatever a server does wrong
        print(f"not registered ({str(error).splitlines()[0]})", file=sys.stderr)


def name_for(cfg: DictConfig) -> str:
    """The study's name. Its reward models, which answer nobody, have one of their own."""
    name = re.sub(r"[^\w.-]+", "-", cfg.experiment_name)  # models:/NAME@ALIAS has marks of its own
    return f"{name}-reward" if cfg.method.name == "reward" else name


def register_model(client: Any, run_id: str, name: str, metric: float | None, lower_is_better: bool) -> Registered:
    """A version of ``name`` that points to the model in the run's artifacts; nothing is copied.

    The alias ``champion`` moves to it if ``metric`` is better than the present champion's, and was measured alike: by
    the same method, on the same base and dataset. A run that is registered already keeps its version. Raises ValueError
    where the store has no model of the run, and MLflow's own errors.
    """
    if not any(f.path == MODEL_DIR for f in client.list_artifacts(run_id)):
        raise ValueError(f"the store has no model of run {run_id}")
    run = client.get_run(run_id)
    tags = tags_of(run) | ({} if metric is None else {"metric": repr(float(metric))})
    with store.sqlite_lock(client.tracking_uri):  # two jobs that end at once ask for the champion one after the other
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(
                name, description=f"`.venv/bin/python chat.py run=models:/{name}@{CHAMPION}`"
            )
        known = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        note = run.data.tags.get("mlflow.note.content", "")
        version = (
            known[0]
            if known
            else client.create_model_version(
                name, f"runs:/{run_id}/{MODEL_DIR}", run_id, tags, description=shorten_markdown(note)
            )
        )
        champion = client.get_registered_model(name).aliases.get(CHAMPION)
        present = client.get_model_version(name, str(champion)) if champion else None
        better, why = compare_with_champion(present, str(version.version), tags, lower_is_better)
        if better:
            client.set_registered_model_alias(name, CHAMPION, str(version.version))
    return Registered(name, str(version.version), better, why)


def tags_of(run: Any) -> dict[str, str]:
    """What a version says of itself, from the run's own tags and params."""
    tags, params = run.data.tags, run.data.params
    found = {key: tags.get(f"manners.{key}") for key in ("method", "fingerprint")}
    found |= {"base_model": params.get("model.name"), "dataset": params.get("dataset.path"), "seed": params.get("seed")}
    return {key: value for key, value in found.items() if value is not None}


def compare_with_champion(present: Any, version: str, tags: dict[str, str], lower_is_better: bool) -> tuple[bool, str]:
    """Whether ``version`` is to be champion in the place of ``present``, which may be None; and why."""
    metric = float(tags.get("metric", math.nan))
    if not math.isfinite(metric):
        return False, "it has no metric"
    if present is None:
        return True, f"the first, with {metric:.4g}"
    if str(present.version) == version:
        return True, f"as it was, with {metric:.4g}"
    for key in ("method", "base_model", "dataset"):
        if present.tags.get(key) != tags.get(key):
            return False, (
                f"that is version {present.version}, of {key} {present.tags.get(key)}, and this is of "
                f"{tags.get(key)}: their metrics do not compare. The alias can be moved by hand in the MLflow UI"
            )
    other = float(present.tags.get("metric", math.nan))
    wins = metric < other if lower_is_better else metric > other
    direction = "lower" if lower_is_better else "higher"
    return wins, f"{metric:.4g} against {other:.4g} of version {present.version}, and {direction} is better"


def shorten_markdown(markdown: str) -> str:
    """Whole lines of it, as many as MLflow keeps: the table of measures comes first."""
    return markdown if len(markdown) <= LONGEST else markdown[:LONGEST].rpartition("\n")[0] + "\n…\n"
