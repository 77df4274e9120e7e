"""MLflow's model registry: the models of an experiment by version, the best under the alias ``champion``."""

import math
import re
import sys
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from manners.config.schema import OBJECTIVE
from manners.redact import redact_secrets
from manners.runtime.run_dir import MODEL_DIR
from manners.tracking import store

CHAMPION = "champion"
MAX_DESCRIPTION_CHARS = 4900  # MLflow keeps 5000


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry: whether it is the champion, and why."""

    name: str
    version: str
    is_champion: bool
    reason: str

    def __str__(self) -> str:
        article = "the new" if self.is_champion else "not the"
        return f"registered as models:/{self.name}/{self.version}, {article} champion: {self.reason}"


def register_and_report(cfg: DictConfig, client: Any, run_id: str, metric: float | None) -> None:
    """Register a run under its experiment's name and print the outcome: an error does not fail the finished run."""
    lower_is_better = OBJECTIVE[cfg.method.name][1] == "minimize"
    try:
        print(register_model(client, run_id, registered_name(cfg), metric, lower_is_better))
    except Exception as error:  # noqa: BLE001  whatever a server does wrong
        print(f"not registered ({redact_secrets(str(error)).splitlines()[0]})", file=sys.stderr)


def registered_name(cfg: DictConfig) -> str:
    """The name of the experiment; its reward models, which do not generate, have a name of their own."""
    name = re.sub(r"[^\w.-]+", "-", cfg.experiment_name)  # models:/NAME@ALIAS reserves some characters
    return f"{name}-reward" if cfg.method.name == "reward" else name


def register_model(
    client: Any, run_id: str, name: str, metric: float | None, lower_is_better: bool
) -> RegisteredVersion:
    """Register the model in the run's artifacts as a version of ``name``; nothing is copied.

    The alias ``champion`` moves to it if ``metric`` is better than the present champion's and comparable: of the same
    method, base model and dataset. A run that is registered already keeps its version. Raises ValueError where the
    store has no model of the run, and MLflow's own errors.
    """
    if not any(f.path == MODEL_DIR for f in client.list_artifacts(run_id)):
        raise ValueError(f"the store has no model of run {run_id}")
    run = client.get_run(run_id)
    tags = version_tags(run) | ({} if metric is None else {"metric": repr(float(metric))})
    with store.sqlite_lock(
        client.tracking_uri
    ):  # two jobs that end at once compare with the champion one after the other
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(
                name, description=f"`.venv/bin/python chat.py run=models:/{name}@{CHAMPION}`"
            )
        versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        description = shorten_markdown(run.data.tags.get("mlflow.note.content", ""))
        version = (
            versions[0]
            if versions
            else client.create_model_version(name, f"runs:/{run_id}/{MODEL_DIR}", run_id, tags, description=description)
        )
        champion = client.get_registered_model(name).aliases.get(CHAMPION)
        present = client.get_model_version(name, str(champion)) if champion else None
        better, why = compare_with_champion(present, str(version.version), tags, lower_is_better)
        if better:
            client.set_registered_model_alias(name, CHAMPION, str(version.version))
    return RegisteredVersion(name, str(version.version), better, why)


def version_tags(run: Any) -> dict[str, str]:
    """The tags of a version, from the tags and params of its run."""
    tags, params = run.data.tags, run.data.params
    copied = {key: tags.get(f"manners.{key}") for key in ("method", "fingerprint")}
    copied |= {
        "base_model": params.get("model.name"),
        "dataset": params.get("dataset.path"),
        "seed": params.get("seed"),
    }
    return {key: value for key, value in copied.items() if value is not None}


def compare_with_champion(present: Any, version: str, tags: dict[str, str], lower_is_better: bool) -> tuple[bool, str]:
    """Whether ``version`` replaces the champion ``present``, which may be None; and why."""
    metric = float(tags.get("metric", math.nan))
    if not math.isfinite(metric):
        return False, "it has no metric"
    if present is None:
        return True, f"the first, with {metric:.4g}"
    if str(present.version) == version:
        return True, f"as before, with {metric:.4g}"
    for key in ("method", "base_model", "dataset"):
        if present.tags.get(key) != tags.get(key):
            return False, (
                f"the champion, version {present.version}, has {key} {present.tags.get(key)}, and this has "
                f"{tags.get(key)}: their metrics do not compare. The alias can be moved by hand in the MLflow UI"
            )
    champion_metric = float(present.tags.get("metric", math.nan))
    better = metric < champion_metric if lower_is_better else metric > champion_metric
    direction = "lower" if lower_is_better else "higher"
    return better, f"{metric:.4g} against {champion_metric:.4g} of version {present.version}, and {direction} is better"


def shorten_markdown(markdown: str) -> str:
    """As many whole lines as MLflow keeps; the table of metrics comes first."""
    return (
        markdown
        if len(markdown) <= MAX_DESCRIPTION_CHARS
        else markdown[:MAX_DESCRIPTION_CHARS].rpartition("\n")[0] + "\n…\n"
    )
