"""From a command line to configs that can run, or to a sentence that names key, file and nearest valid name.

``plan_run`` composes a command once, and once more for each run that it starts from: PPO's SFT policy and reward model
are commands of their own.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from manners.config import schema, validate
from manners.errors import MannersError, did_you_mean
from manners.runtime.paths import CONF, ROOT

DEPENDENCY_METHOD = {"policy": "sft", "reward": "reward"}  # role of a run that another starts from → its method
# Options of a run that are not those of the runs it starts from.
RUN_ONLY_KEYS = {
    *("method", "plan", "preview", "estimate", "register_model", "run_name"),
    *(f"{role}_from" for role in DEPENDENCY_METHOD),
    *(f"{role}_run_overrides" for role in DEPENDENCY_METHOD),
}


# Former names of options whose present names are not similar in spelling, or not the most similar.
RENAMED = {
    "study": "experiment",
    "study_name": "experiment_name",
    "quick": "debug=quick",
    "lineage": "plan",
    "fit": "estimate",
    "reward": "reward_from",
    "strength": "adapter_scale",
    "arena": "self_chat",
    "hardware.parts": "hardware.microbatch_size",
    "dataset.train_on": "dataset.loss_roles",
    "dataset.every_reply": "dataset.include_alternatives",
    "dataset.score_above": "dataset.min_score_quantile",
    "dataset.keep": "dataset.keep_flagged",
    "dataset.on_error": "dataset.on_invalid_row",
    "dataset.card": "dataset.text_stats",
    "dataset.views": "dataset.sample_types",
    "method.view": "method.sample_type",
    "method.target": "method.kl_target",
}


@dataclass(frozen=True)
class RunSpec:
    """A run to be made: its config, the command that makes it, and the runs that it starts from."""

    cfg: DictConfig
    overrides: list[str]  # the command, less `python train.py`
    role: str = ""  # what a later run needs it for: "policy" or "reward"; "" for the run that was asked for
    explicit_source: str = ""  # a run id or folder that stands in for the run of this config
    dependencies: list["RunSpec"] = field(default_factory=list)


class UserConfigDir(SearchPathPlugin):
    """Makes Hydra's ``--config-dir`` known to every composition, a sweep's too."""

    folder: Path | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder:
            search_path.append("command-line", str(self.folder.resolve()))


def register(config_dir: str | None = None) -> None:
    """Hand schemas and search path to Hydra, once for a process."""
    schema.register_schemas()
    if not os.environ.get("MLFLOW_TRACKING_URI"):  # MLflow takes an empty one as unset
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    UserConfigDir.folder = Path(config_dir) if config_dir else None
    Plugins.instance().register(UserConfigDir)


@contextmanager
def hydra_context() -> Iterator[None]:
    """Hydra, initialized on ``conf/``; the one at work where a job runs within Hydra already."""
    if GlobalHydra.instance().is_initialized():
        yield
        return
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def plan_run(overrides: list[str], cfg: DictConfig | None = None) -> RunSpec:
    """The run that ``python train.py`` makes of ``overrides``, checked, with the runs that it starts from.

    ``cfg`` is the composed config, where it is known. Raises MannersError for what cannot work.
    """
    with hydra_context():
        cfg = cfg or compose("train", overrides)
        validate.validate_config(cfg)
        return RunSpec(cfg, overrides, dependencies=plan_dependencies(cfg, overrides))


def plan_dependencies(cfg: DictConfig, overrides: list[str]) -> list[RunSpec]:
    """The runs that a run starts from: the same command with another method, checked alike. Raises MannersError."""
    specs = []
    for role in schema.STARTS_FROM.get(cfg.method.sample_type, ()):
        source = cfg[f"{role}_from"]
        if source == "none" or (role == "reward" and not uses_reward_model(cfg)):
            continue
        own = list(cfg[f"{role}_run_overrides"])
        replaced = RUN_ONLY_KEYS | {override_key(o) for o in own}
        kept = [
            o for o in overrides if override_key(o) not in replaced and override_key(o).split(".")[0] not in replaced
        ]
        command = [*kept, f"method={DEPENDENCY_METHOD[role]}", *own]
        try:
            dependency = compose("train", command)
            validate.validate_config(dependency)
        except MannersError as error:
            raise MannersError(f"the {role} run ({' '.join(command)}): {error}") from None
        specs.append(RunSpec(dependency, command, role, "" if source == "auto" else str(source)))
    return specs


def uses_reward_model(cfg: DictConfig) -> bool:
    """Whether a component of the reward is a reward model, not a function."""
    return any("_target_" not in component for component in cfg.method.rewards.values())


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """The composed config. Raises MannersError that names the key, its file or override, and the nearest valid name."""
    with hydra_context():
        try:
            cfg = hydra.compose(config_name, overrides)
            OmegaConf.to_container(cfg, resolve=True)  # an interpolation to nothing shows only now
        except MissingConfigException as error:
            raise MannersError(explain_missing(config_name, error, overrides)) from None
        except yaml.YAMLError as error:
            raise MannersError(f"this file is not valid yaml: {error}") from None
        except UnicodeDecodeError as error:
            source = override_source(config_name, "", overrides)
            raise MannersError(f"{source}: the file is not UTF-8 text ({error.reason}).") from None
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            # model=null is a bare ValueError, model=[[a]] a bare TypeError
            raise MannersError(explain(error, config_name, overrides)) from None
        if key := unknown_key(cfg, OmegaConf.get_type(cfg)):
            raise MannersError(no_such_option(override_source(config_name, key, overrides), key, cfg))
        expand_home(cfg)
        return cfg


def expand_home(cfg: DictConfig) -> None:
    """Replace ``~`` at the start of ``output_dir``, which a shell leaves after ``=``."""
    cfg.output_dir = os.path.expanduser(cfg.output_dir)


def with_values(cfg: DictConfig, overrides: list[str]) -> DictConfig | None:
    """``cfg`` with other values for keys that its own command set too, without composing it anew.

    None where that is not the same: a choice from a config group brings more than a value, and a refused value brings a
    reason.
    """
    loader, changed = GlobalHydra.instance().config_loader(), deepcopy(cfg)
    for override in OverridesParser.create(loader).parse_overrides(overrides):
        key, value = override.key_or_group, override.value()
        if loader.get_group_options(key) or not isinstance(value, bool | int | float | str):
            return None
        try:
            OmegaConf.update(changed, key, value)
        except OmegaConfBaseException:
            return None
    return changed


def override_key(override: str) -> str:
    """The key or group that an override sets."""
    return override.lstrip("+~").split("=")[0].split("@")[0]


def quoted_override(key: str, value: Any) -> str:
    """The override ``key=value``, with quotes where Hydra's grammar needs them: a path may have any character."""
    text = str(value)
    word = text.lower() in ("true", "false", "null", "nan", "inf")
    plain = re.fullmatch("[a-zA-Z/][a-zA-Z0-9_./-]*", text) and not word
    return f"{key}={text if plain else QuotedString(text, Quote.single).with_quotes()}"


def explain_missing(config_name: str, error: MissingConfigException, overrides: list[str]) -> str:
    """The sentence on a choice that a config group does not have."""
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    source = override_source(config_name, group, overrides)
    choices = error.options or GlobalHydra.instance().config_loader().get_group_options(group)
    return f"{source}: no '{choice}' in {group}. {did_you_mean(choice, choices)}"


def explain(error: Exception, config_name: str, overrides: list[str]) -> str:
    """Hydra's error in one sentence. Its cause knows the key; of a mistake in a file only its text does."""
    cause, text = error.__cause__, f"{error}"
    file = match[1] if (match := re.search(r"In '([\w./]+)'", text)) else ""
    key = getattr(cause, "full_key", None) or (match[1] if (match := re.search(r"full_key: (\S+)", text)) else "")
    reason = str(getattr(cause, "msg", None) or text.partition("composing config:\n")[2] or text)
    reason = " ".join(reason.partition("full_key:")[0].split())
    if leaf := re.match(r"Key '(\w+)' (?:is )?not in", reason):
        key = key if key.endswith(leaf[1]) else f"{key}.{leaf[1]}"
        if key.startswith("method.rewards."):
            return f"{key}: the reward has no component '{leaf[1]}' yet: a plus adds it, +{key}=VALUE."
        source = config_file(file) if file else override_source(config_name, key, overrides)
        return no_such_option(source, key, known_config(config_name, overrides))
    source = config_file(file) if file else override_source(config_name, key, overrides)
    return f"{source}: {reason}." if not key or source.startswith(key) else f"{source}: {key}: {reason}."


def no_such_option(source: str, key: str, cfg: DictConfig) -> str:
    """The sentence on a key that no schema has, with its present name, or the nearest in its own group or anywhere."""
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    near = [f"{parent}.{k!s}" if parent else str(k) for k in node] if isinstance(node, DictConfig) else []
    if not parent and "method" in cfg:
        near += ["experiment", "debug"]  # groups of train.yaml that are no part of the config
    same_leaf = [name for name in option_names(cfg) if name.rpartition(".")[2] == leaf]
    if present := RENAMED.get(key) or next(iter(same_leaf), ""):
        return f"{source}: there is no option '{key}'. Did you mean '{present}'?"
    return f"{source}: there is no option '{key}'. {did_you_mean(key, near or [str(k) for k in cfg])}"


def option_names(node: DictConfig, path: str = "") -> list[str]:
    """Every option below ``node``, dotted."""
    names = []
    for name in schema.options(OmegaConf.get_type(node)):
        child = node._get_node(name)
        names.append(f"{path}{name}")
        if isinstance(child, DictConfig) and schema.is_schema(OmegaConf.get_type(child)):
            names += option_names(child, f"{path}{name}.")
    return names


def known_config(config_name: str, overrides: list[str]) -> DictConfig:
    """A config with the options that ``overrides`` may set: that of their group choices, or the default's."""
    loader = GlobalHydra.instance().config_loader()
    groups = [o for o in overrides if loader.get_group_options(override_key(o)) and override_key(o) != "experiment"]
    try:
        return hydra.compose(config_name, groups)
    except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError):
        return hydra.compose(config_name)


def config_file(name: str) -> str:
    """The file that Hydra calls 'experiment/strictbot', as the user would open it."""
    for folder in (UserConfigDir.folder, CONF):
        if folder and (file := folder / f"{name}.yaml").exists():
            return str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file)
    return f"conf/{name}.yaml"


def unknown_key(node: Any, node_schema: Any, path: str = "") -> str:
    """The first key that no schema knows: Hydra's '+' gets past a schema, so the config is held against it again."""
    option_fields = schema.options(node_schema)
    for key in map(str, node):
        if key not in option_fields:
            return f"{path}{key}"
        child = node._get_node(key)
        is_group = isinstance(child, DictConfig) and schema.is_schema(OmegaConf.get_type(child))
        if is_group and (unknown := unknown_key(child, OmegaConf.get_type(child), f"{path}{key}.")):
            return unknown
    return ""


def override_source(config_name: str, key: str, overrides: list[str]) -> str:
    """The override that sets ``key``, or else the recipe or defaults file that does."""
    for override in reversed(overrides):
        name = override_key(override)
        if name == key or name.startswith(f"{key}."):
            return override
    experiment = next((o.split("=")[1] for o in overrides if o.startswith("experiment=")), None)
    return config_file(f"experiment/{experiment}" if experiment else config_name)
