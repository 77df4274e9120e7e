"""``dataset.mix``: each entry names a choice of ``conf/dataset``, and becomes that dataset's own options."""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from manners.config import schema
from manners.config.overrides import override_key
from manners.errors import MannersError, did_you_mean

KEY = "dataset.mix"
EXAMPLE = f"'{KEY}=[{{name: strictbot, weight: 2}}, {{name: jsonl, path: my.jsonl, weight: 1}}]'"
# What a training has one of: it is the mixture's own, or that of the entries that set it.
OF_ALL = (
    *("style_judge", "judge_labels", "prompted_baseline", "eval_prompts_file", "text_stats"),
    *("loss_roles", "prefix_words", "conversation_eos"),
)
SAME_IN_ALL = ("loss_roles", "prefix_words", "conversation_eos")  # what decides how every row is read


def choose_mixture(overrides: list[str]) -> list[str]:
    """``overrides`` with ``dataset=mix`` where they set ``dataset.mix``. Raises MannersError beside another dataset."""
    mix = next((o for o in overrides if override_key(o) == KEY), f"{KEY}=null")
    chosen = next((o.partition("=")[2] for o in overrides if override_key(o) == "dataset"), "")
    if mix.endswith("=null") or chosen == "mix":
        return overrides
    if mix.endswith("=[]"):
        raise MannersError(f"{KEY}=[] names no dataset: {EXAMPLE}", KEY)
    if path := next((o for o in overrides if override_key(o) == "dataset.path"), ""):
        file = path.partition("=")[2]
        raise MannersError(
            f"{path}: beside {KEY} a file is one of its datasets, '{KEY}=[{{name: jsonl, path: {file}}}, ...]'.", KEY
        )
    if chosen:
        raise MannersError(
            f"{KEY} names all datasets of a training: leave out dataset={chosen}, and make it one of them, "
            f"'{KEY}=[{{name: {chosen}}}, ...]'.",
            KEY,
        )
    return [*overrides, "dataset=mix"]


def expand_mixture(cfg: DictConfig) -> None:
    """Replace the entries of ``cfg.dataset.mix`` by all options of their datasets, each under a unique name.

    Raises MannersError for an entry that cannot be read, and for entries that contradict each other.
    """
    dataset = cfg.get("dataset")
    if not dataset or not dataset.get("mix"):
        return
    if not isinstance(dataset.mix, ListConfig):
        raise MannersError(f"{KEY} is a list of datasets, such as {EXAMPLE}", KEY)
    if dataset.path != "mix:":  # a recipe has left the default dataset beside the mixture
        raise MannersError(
            f"{KEY} is an option of dataset=mix: a recipe chooses it by '- override /dataset: mix'.", KEY
        )
    defaults = OmegaConf.structured(schema.DatasetConfig)
    written: Any = OmegaConf.to_container(dataset.mix, resolve=True)
    entries = [expand_entry(entry, defaults) for entry in written]
    check_weights(entries)
    for key in OF_ALL:
        values = [entry.pop(key, defaults[key]) for entry in entries]
        if dataset[key] == defaults[key]:
            dataset[key] = common_value(key, values, defaults[key])
    offered = [set(entry["sample_types"]) for entry in entries if entry.get("sample_types")]
    dataset.sample_types = sorted(set.intersection(*offered)) if offered else []
    dataset.path = "mix:" + "+".join(entry["name"] for entry in entries)
    dataset.mix = entries


def expand_entry(entry: Any, defaults: DictConfig) -> dict[str, Any]:
    """Name, weight, and the options of a dataset that differ from the defaults. Raises MannersError."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise MannersError(f"{KEY}: an entry has the name of a dataset, and options of it: {EXAMPLE}", KEY)
    choices = [c for c in GlobalHydra.instance().config_loader().get_group_options("dataset") if c != "mix"]
    if entry["name"] not in choices:
        file = f"A file of yours: {{name: jsonl, path: {entry['name']}}}. "
        raise MannersError(f"{KEY}: no '{entry['name']}' in dataset. {file}{did_you_mean(entry['name'], choices)}", KEY)
    group = hydra.compose(f"dataset/{entry['name']}").get("dataset") or {}
    known = [key for key in schema.options(schema.DatasetConfig) if key not in ("name", "mix")]
    for key in entry.keys() - {"name", "weight", *known}:
        raise MannersError(f"{KEY}: {entry['name']} has no option '{key}'. {did_you_mean(str(key), known)}", KEY)
    given = {key: value for key, value in entry.items() if key not in ("name", "weight")}
    try:
        own: Any = OmegaConf.merge(defaults, group, given)
    except OmegaConfBaseException as error:
        raise MannersError(f"{KEY}, {entry['name']}: {str(error).splitlines()[0]}.", KEY) from None
    if OmegaConf.is_missing(own, "path"):
        raise MannersError(f"{KEY}: {entry['name']} needs a file: {{name: {entry['name']}, path: FILE}}.", KEY)
    values: Any = OmegaConf.to_container(own, resolve=True)
    set_here = {key: value for key, value in values.items() if key == "path" or value != defaults._get_node(key)}
    name = entry["name"] if entry["name"] != "jsonl" else Path(str(own.path)).name.partition(".")[0] or "jsonl"
    return set_here | {"name": name} | ({"weight": entry["weight"]} if "weight" in entry else {})


def check_weights(entries: list[dict[str, Any]]) -> None:
    """Weights are numbers from 0, of all entries or of none; two entries have two names. Raises MannersError.

    The same entry twice is refused, too: its held-out rows would count twice.
    """
    datasets = [{key: value for key, value in entry.items() if key != "weight"} for entry in entries]
    for i, one in enumerate(datasets):
        if one in datasets[:i]:
            raise MannersError(f"{KEY} has {one['name']} twice: name it once, with the sum of the weights.", KEY)
    weighted = [entry for entry in entries if "weight" in entry]
    for entry in weighted:
        if type(entry["weight"]) not in (int, float) or not 0 <= entry["weight"] < float("inf"):
            raise MannersError(f"{KEY}: {entry['name']} has the weight {entry['weight']}: a number of at least 0.", KEY)
    if weighted and len(weighted) < len(entries):
        lacking = next(entry["name"] for entry in entries if "weight" not in entry)
        raise MannersError(f"{KEY}: {lacking} has no weight, and others have: give one to all, or to none.", KEY)
    if weighted and not any(entry["weight"] for entry in weighted):
        raise MannersError(f"{KEY}: all weights are 0, which trains on nothing.", KEY)
    names = [entry["name"] for entry in entries]
    for i, entry in enumerate(entries):
        if names.count(entry["name"]) > 1:  # two files of one name, or two parts of one hub dataset
            entry["name"] = f"{names[i]}-{names[: i + 1].count(names[i])}"


def common_value(option: str, values: list[Any], default: Any) -> Any:
    """The value of an option that all rows share. Raises MannersError where the entries have several."""
    distinct = [value for i, value in enumerate(values) if value not in values[:i]]
    given = [value for value in distinct if value != default]
    if len(given) > 1 or (option in SAME_IN_ALL and len(distinct) > 1):
        raise MannersError(
            f"{KEY}: the datasets have several values of {option} ({', '.join(map(str, distinct))}), and a training "
            f"has one: set dataset.{option}=VALUE.",
            f"dataset.{option}",
        )
    return given[0] if given else default
