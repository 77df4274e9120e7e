"""Overrides: the key and the file that they belong to, and how they are handed to Hydra."""

import re
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf

from manners.config import schema
from manners.config.written_text import quote_text, text_options
from manners.errors import MannersError, did_you_mean
from manners.runtime.paths import CONF, ROOT


def override_key(override: str) -> str:
    """The key or group that an override sets."""
    return override.lstrip("+~").split("=")[0].split("@")[0]


def quoted_override(key: str, value: Any) -> str:
    """The override ``key=value``, with quotes where Hydra's grammar needs them: a path may have any character."""
    text = str(value)
    word = text.lower() in ("true", "false", "null", "nan", "inf")
    plain = re.fullmatch("[a-zA-Z/][a-zA-Z0-9_./-]*", text) and not word
    return f"{key}={text if plain else QuotedString(text, Quote.single).with_quotes()}"


def model_group(name: str) -> str:
    """The choice of the group ``model`` that is the model ``name`` on the hub; "" where there is none."""
    files = sorted((CONF / "model").glob("*.yaml"))
    return next((file.stem for file in files if yaml.safe_load(file.read_text()).get("name") == name), "")


def config_file(name: str) -> str:
    """The file that Hydra calls 'experiment/strictbot', as the user would open it."""
    file = find_config_file(name) or CONF / f"{name}.yaml"
    return str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file)


def find_config_file(name: str) -> Path | None:
    """The file that Hydra calls 'experiment/strictbot'; None for a schema."""
    places = [e.path for e in GlobalHydra.instance().config_loader().get_search_path().get_path()]
    files = [
        Path(place.removeprefix("file://"), f"{name}.yaml") for place in places if "pkg://" not in (place or "pkg://")
    ]
    return next((file for file in files if file.exists()), None)


def override_source(config_name: str, key: str, overrides: list[str]) -> str:
    """The override that sets ``key``, or else the recipe or defaults file that does."""
    for override in reversed(overrides):
        name = override_key(override)
        if name == key or name.startswith(f"{key}."):
            return override
    experiment = next((o.split("=")[1].removesuffix(".yaml") for o in overrides if o.startswith("experiment=")), None)
    return config_file(f"experiment/{experiment}" if experiment else config_name)


def rewrite_overrides(config_name: str, overrides: list[str]) -> list[str]:
    """``overrides`` as Hydra has to get them to compose what they say. Raises MannersError."""
    options = set(text_options(schema.CONFIGS[config_name]))
    return [quote_text(o, options) for o in replace_rewards(config_name, drop_tuned(config_name, overrides))]


def drop_tuned(config_name: str, overrides: list[str]) -> list[str]:
    """``overrides`` without the values tuned for a group's model, if ``model.name`` names another model.

    Raises MannersError for a choice of ``tuned`` that does not exist: the group is optional, and Hydra would ignore it.
    """
    chosen = {override_key(o): o.partition("=")[2] for o in overrides}
    if config_name != "train" or "tuned" in chosen:
        check_tuned(chosen.get("tuned", ""))
        return overrides
    recipe = config_file(f"experiment/{chosen['experiment']}") if chosen.get("experiment") else ""
    renamed = "model.name" in chosen or sets_model_name(Path(ROOT, recipe))
    return [*overrides, "~tuned"] if renamed else overrides


def check_tuned(choice: str) -> None:
    """Raises MannersError for a choice that ``conf/tuned`` does not have."""
    loader = GlobalHydra.instance().config_loader()
    known = [
        f"{model}/{name}"
        for model in loader.list_groups("tuned")
        for name in loader.get_group_options(f"tuned/{model}")
    ]
    if choice not in ("", *known):
        raise MannersError(f"tuned={choice}: there is no such choice. {did_you_mean(choice, known)} For none: '~tuned'")


def sets_model_name(recipe: Path) -> bool:
    """Whether a recipe names a model itself. A recipe that cannot be read is reported when it is composed."""
    try:
        return "name" in yaml.safe_load(recipe.read_text()).get("model", {})
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError):
        return False


def replace_rewards(config_name: str, overrides: list[str]) -> list[str]:
    """``overrides`` as Hydra needs them so that ``method.rewards={...}`` is the whole reward.

    Hydra alone changes components that exist: those of the defaults are deleted, and the new ones added.
    """
    key = {"train": "method.rewards", "evaluate": "rewards"}.get(config_name, "method.rewards")
    at = next((i for i, override in enumerate(overrides) if override.startswith(f"{key}={{")), None)
    if at is None:
        return overrides
    others = [o for o in overrides if not override_key(o).startswith(key)]
    defaults = OmegaConf.select(hydra.compose(config_name, others), key)
    if defaults is None:  # a method without rewards, which Hydra refuses
        return overrides
    deletions = [o for name in defaults if (o := f"~{key}.{name}") not in overrides]
    return [*overrides[:at], *deletions, f"++{overrides[at]}", *overrides[at + 1 :]]
