"""From a command line to configs that can run, or to a sentence that names key, file and nearest valid name.

``plan_run`` composes a command once, and once more for each run that it starts from: PPO's SFT policy and reward model
are commands of their own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from manners.config import schema, validate
from manners.config.explain import explain, explain_missing, no_such_option
from manners.config.mixture import choose_mixture, expand_mixture
from manners.config.overrides import find_config_file, override_key, override_source, rewrite_overrides
from manners.config.written_text import has_misread_text, restore_texts, text_options
from manners.errors import MannersError
from manners.runtime.paths import CONF

DEPENDENCY_METHOD = {"policy": "sft", "reward": "reward"}  # role of a run that another starts from → its method
# Options of a run that are not those of the runs it starts from.
RUN_ONLY_KEYS = {
    *("method", "plan", "preview", "estimate", "register_model", "run_name"),
    *(f"{role}_from" for role in DEPENDENCY_METHOD),
    *(f"{role}_run_overrides" for role in DEPENDENCY_METHOD),
}


@dataclass(frozen=True)
class RunSpec:
    """A run to be made: its config, the command that makes it, and the runs that it starts from."""

    cfg: DictConfig  # of a given run, that of the run that starts from it
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
    """The runs that a run starts from: given, or the same command with another method, checked alike.

    Raises MannersError.
    """
    specs = []
    for role in schema.STARTS_FROM.get(cfg.method.sample_type, ()):
        source = cfg[f"{role}_from"]
        if source == "none" or (role == "reward" and not uses_reward_model(cfg)):
            continue
        if source != "auto":  # what is given is not composed: its data and method are its own
            specs.append(RunSpec(cfg, [], role, str(source)))
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
            recipe = next((o for o in kept if override_key(o) == "experiment"), "")
            own_recipe = f" Give that run a recipe of its own: {role}_run_overrides=['experiment=NAME']."
            raise MannersError(f"the {role} run ({' '.join(command)}): {error}{own_recipe if recipe else ''}") from None
        specs.append(RunSpec(dependency, command, role))
    return specs


def uses_reward_model(cfg: DictConfig) -> bool:
    """Whether a component of the reward is a reward model, not a function."""
    return any("_target_" not in component for component in cfg.method.rewards.values())


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """The composed config. Raises MannersError that names the key, its file or override, and the nearest valid name."""
    with hydra_context():
        try:
            rewritten = rewrite_overrides(config_name, choose_mixture(overrides))
            cfg = hydra.compose(config_name, rewritten)
            if has_misread_text(cfg, options := set(text_options(schema.CONFIGS[config_name]))):
                files, set_by_command = config_files(config_name, rewritten), {override_key(o) for o in overrides}
                restore_texts(cfg, options, files, set_by_command)
            OmegaConf.to_container(cfg, resolve=True)  # an interpolation to nothing shows only now
        except MissingConfigException as error:
            raise MannersError(explain_missing(config_name, error, overrides)) from None
        except yaml.YAMLError as error:
            raise MannersError(f"this file is not valid yaml: {error}") from None
        except UnicodeDecodeError as error:
            source = override_source(config_name, "", overrides)
            raise MannersError(f"{source}: the file is not UTF-8 text ({error.reason}).") from None
        except AssertionError:  # Hydra's own, of an option below a group that nothing has chosen
            key = next((o for o in overrides if override_key(o).startswith("dataset.")), "dataset")
            raise MannersError(f"{key}: there is no dataset to change yet: dataset=jsonl, or another one.") from None
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            # model=null is a bare ValueError, model=[[a]] a bare TypeError
            raise MannersError(explain(error, config_name, overrides)) from None
        drop_null_rewards(cfg)
        if key := unknown_key(cfg, OmegaConf.get_type(cfg)):
            raise MannersError(no_such_option(override_source(config_name, key, overrides), key, cfg))
        expand_home(cfg)
        expand_mixture(cfg)
        return cfg


def drop_null_rewards(cfg: DictConfig) -> None:
    """Remove the components of the reward that are null: so a recipe leaves out one of the defaults."""
    rewards = OmegaConf.select(cfg, "method.rewards")
    for name in [n for n in rewards if rewards[n] is None] if isinstance(rewards, DictConfig) else []:
        with open_dict(rewards):
            del rewards[name]


def config_files(config_name: str, overrides: list[str]) -> list[tuple[Path, str]]:
    """The files that a config is composed of, from the first to the last to be merged, each with its package."""
    loader = GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list(config_name, overrides, RunMode.RUN).defaults
    found = ((find_config_file(d.config_path or ""), d.package or "") for d in defaults)
    return [(file, package) for file, package in found if file]


def expand_home(cfg: DictConfig) -> None:
    """Replace ``~`` at the start of ``output_dir``, which a shell leaves after ``=``. Raises MannersError."""
    cfg.output_dir = os.path.expanduser(cfg.output_dir)
    if cfg.output_dir.startswith("~"):
        raise MannersError(f"output_dir={cfg.output_dir}: there is no such user. A folder of that name is ./~NAME.")


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
