"""A run's config, composed as train.py composes it."""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache

from omegaconf import DictConfig

from manners.config.compose import compose as compose_config
from manners.config.compose import register


def tiny(overrides: Sequence[str]) -> list[str]:
    """The overrides of a command on the packaged toy and its corpus, unless they choose others."""
    chosen = {override.split("=", 1)[0].lstrip("+") for override in overrides}
    defaults = {"model": "model=tiny", "dataset": "dataset=strictbot_tiny"}
    missing = [o for group, o in defaults.items() if not chosen & {group, "experiment"}]
    flags = next((i for i, o in enumerate(overrides) if "=" in o), len(overrides))  # -m stands before all options
    return [*overrides[:flags], *missing, *overrides[flags:]]


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
    register()
    return compose_config("train", tiny(choices))
