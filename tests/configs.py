"""A run's config, composed as train.py composes it."""

from copy import deepcopy
from functools import cache

import hydra
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from manners.config import compose as composing
from manners.config import schema
from manners.runtime import paths


def compose(*choices: str) -> DictConfig:
    """A copy of its own, so that a test may change it."""
    return deepcopy(_composed(choices))


def changed(*values: str) -> DictConfig:
    """The default config with some KEY=VALUE set, which is much faster than composing it anew."""
    cfg = compose()
    cfg.merge_with_dotlist(list(values))
    return cfg


@cache
def _composed(choices: tuple[str, ...]) -> DictConfig:
    schema.register_schemas()
    Plugins.instance().register(composing.UserConfigDir)
    with hydra.initialize_config_dir(str(paths.CONF), version_base="1.3"):
        return composing.compose("train", list(choices))
