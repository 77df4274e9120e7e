"""From overrides to a config that can work, or a sentence that names key, file and nearest valid name."""

import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from manners import checks, config
from manners.errors import MannersError, did_you_mean
from manners.paths import CONF, EXPERIMENTS, ROOT

if TYPE_CHECKING:
    from manners.chain import Stage


class Recipes(SearchPathPlugin):
    """Makes ``experiments/study/*.yaml`` the config group ``study``, for sweeps and help too."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("manners", str(EXPERIMENTS))


MAKES = {"policy": "sft", "reward": "reward"}  # what a run starts from → the method whose run makes it
# Options of a run that are not those of the runs it starts from.
ITS_OWN = {
    "method",
    "lineage",
    "preview",
    "fit",
    "register",
    "run_name",
    *MAKES,
    *(f"{role}_overrides" for role in MAKES),
}

# What quick=true makes of a run: 100 rows of each split, 20 optimizer steps.
QUICK = {
    "dataset.max_rows": 100,
    "method.max_steps": 20,
    "method.gradient_accumulation_steps": 1,
    "method.total_episodes": 80,
    "method.batch_size": 16,
    "method.response_length": 32,
    "method.num_ppo_epochs": 2,
    "method.num_mini_batches": 2,
    "method.eval_steps": 10,
    "method.eval_prompts": 16,
    "method.sanity_floor": 0.0,  # no reward model of 20 steps would pass
    "evaluation.test_prompts": 40,
    "evaluation.max_new_tokens": 32,
}


def needs(cfg: DictConfig, overrides: list[str]) -> list["Stage"]:
    """The runs that a training starts from: each is the same command with another method, checked like any other."""
    from manners.chain import Stage  # with all that reads data, which neither help nor a typo waits for

    found = []
    for role in config.STARTS_FROM.get(cfg.method.view, ()) if "method" in cfg else ():
        if cfg[role] == "none" or (role == "reward" and not uses_reward_model(cfg)):
            continue
        own = list(cfg[f"{role}_overrides"])
        replaced = ITS_OWN | {key_of(o) for o in own}
        kept = [o for o in overrides if key_of(o) not in replaced and key_of(o).split(".")[0] not in replaced]
        theirs = [*kept, f"method={MAKES[role]}", *own]
        try:
            stage_cfg = compose("train", theirs)
            checks.check(stage_cfg)
        except MannersError as error:
            raise MannersError(f"the {role} run ({' '.join(theirs)}): {error}") from None
        found.append(Stage(stage_cfg, theirs, role, "" if cfg[role] == "auto" else str(cfg[role])))
    return found


def uses_reward_model(cfg: DictConfig) -> bool:
    return any("_target_" not in part for part in cfg.method.rewards.values())


def key_of(override: str) -> str:
    return override.lstrip("+~").split("=")[0].split("@")[0]


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """The composed config; raises MannersError that names key, origin and nearest valid name."""
    try:
        cfg = quicken(hydra.compose(config_name, overrides), overrides)
        OmegaConf.to_container(cfg, resolve=True)  # a reference to nothing shows only now
    except MissingConfigException as error:
        raise MannersError(explain_missing(config_name, error, overrides)) from None
    except yaml.YAMLError as error:
        raise MannersError(f"this file is not valid yaml: {error}") from None
    except UnicodeDecodeError as error:
        raise MannersError(
            f"{origin(config_name, '', overrides)}: the file is not UTF-8 text ({error.reason})."
        ) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # study=null is a bare ValueError
        raise MannersError(explain(error, config_name, overrides)) from None
    extra = unknown_key(cfg, OmegaConf.get_type(cfg))
    if extra:
        key, known = extra
        raise MannersError(
            f"{origin(config_name, key, overrides)}: there is no option '{key}'. {did_you_mean_key(key, known)}"
        )
    return cfg


def vary(cfg: DictConfig, overrides: list[str]) -> DictConfig | None:
    """``cfg`` with other values for keys that its own command set too, without composing it anew.

    None where that is not the same: a choice from a config group and ``quick`` bring more than a value, and a refused
    value brings a reason.
    """
    loader, varied = GlobalHydra.instance().config_loader(), deepcopy(cfg)
    for override in OverridesParser.create(loader).parse_overrides(overrides):
        key, value = override.key_or_group, override.value()
        if key == "quick" or loader.get_group_options(key) or not isinstance(value, bool | int | float | str):
            return None
        try:
            OmegaConf.update(varied, key, value)
        except OmegaConfBaseException:
            return None
    return varied


def explain_missing(config_name: str, error: MissingConfigException, overrides: list[str]) -> str:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    place = origin(config_name, group, overrides)
    return f"{place}: no '{choice}' in {group}. {did_you_mean(choice, error.options or [])}"


def explain(error: Exception, config_name: str, overrides: list[str]) -> str:
    """Hydra's message, which names the key, and the nearest key that exists."""
    cause = str(error.__cause__ or "")
    text = f"{error}\n{cause}"
    where = re.search(r"In '([\w./]+)'", text)
    override = re.search(r"override '?([^'\s]+?)'?\.?(\n|$)", text)
    file = recipe_file(where.group(1)) if where else ""
    place = file or (override.group(1) if override else "")
    if match := re.search(r"Key '(\w+)' (?:is )?not in [^\n]*\n\s*full_key: (\S+)", text):
        leaf, key = match.groups()
        key = key if key.endswith(leaf) else f"{key}.{leaf}"
        if key.startswith("method.rewards."):
            return f"{place or key}: the reward has no part '{leaf}' yet: a plus adds it, +{key}=VALUE."
        siblings, place = known_keys(config_name, key.rpartition(".")[0]), place or origin(config_name, key, overrides)
        return f"{place}: there is no option '{key}'. {did_you_mean_key(key, siblings)}"
    if match := re.search(r"((?:Value|Interpolation) .*)\n\s*full_key: (\S+)", text):
        reason, key = match.groups()
        place = place or origin(config_name, key, overrides)
        return f"{place}: {reason}." if place.startswith(key) else f"{place}: {key}: {reason}."
    reason = text.partition("full_key:")[0].split("\n")  # what follows is OmegaConf's own bookkeeping
    return " ".join(line.strip() for line in reason if line.strip())


def recipe_file(name: str) -> str:
    """The file that Hydra calls 'study/strictbot', as the user would open it."""
    folder = EXPERIMENTS if name.startswith("study/") else CONF
    return str((folder / f"{name}.yaml").relative_to(ROOT))


def known_keys(config_name: str, parent: str) -> list[str]:
    """The options under ``parent`` in the default config; the top level where there is no such parent."""
    node = hydra.compose(config_name)
    for part in filter(None, parent.split(".")):
        node = node[part] if part in node and isinstance(node[part], DictConfig) else node
    return [str(k) for k in node]


def did_you_mean_key(key: str, known: list[str]) -> str:
    parent, _, leaf = key.rpartition(".")
    return did_you_mean(key, [f"{parent}.{k}" if parent else k for k in known]) if leaf else ""


def quicken(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """With ``quick=true``: a trial run. What the command line sets itself stays as it is set."""
    if not cfg.get("quick"):
        return cfg
    said = {key_of(o) for o in overrides}
    for key, value in QUICK.items():
        group, name = key.split(".")
        if name in cfg[group] and key not in said:
            cfg[group][name] = value
    return cfg


def unknown_key(node: DictConfig, schema: Any, path: str = "") -> tuple[str, list[str]] | None:
    """The first key that no schema knows: Hydra's '+' gets past a schema, so it is held against it again."""
    known = config.options(schema)
    for key in map(str, node):
        if key not in known:
            return f"{path}{key}", list(known)
        child = node._get_node(key)
        if isinstance(child, DictConfig) and config.is_schema(OmegaConf.get_type(child)):
            found = unknown_key(child, OmegaConf.get_type(child), f"{path}{key}.")
            if found:
                return found
    return None


def origin(config_name: str, key: str, overrides: list[str]) -> str:
    """The override that sets ``key``, or else the recipe or defaults that do."""
    for override in reversed(overrides):
        name = key_of(override)
        if name == key or name.startswith(f"{key}."):
            return override
    study = next((o.split("=")[1] for o in overrides if o.startswith("study=")), None)
    return f"experiments/study/{study}.yaml" if study else f"conf/{config_name}.yaml"
