"""Conversations in the terminal: a person with a model, or two models with each other."""

import gc
import warnings

from omegaconf import DictConfig

from manners import speaker
from manners.errors import MannersError


def run(cfg: DictConfig) -> None:
    """What ``chat.py`` does. A name that means nothing is answered before torch is imported, which takes seconds."""
    if cfg.arena and cfg.turns < 1:
        raise MannersError("turns=0: nobody would speak. Set turns=8.", "turns")
    if cfg.prompt is not None and not cfg.prompt.strip():
        raise MannersError('prompt is empty: -p "some words"', "prompt")
    roles = {"user": cfg.user, "assistant": cfg.assistant} if cfg.arena else {"run": cfg.run}
    chosen = {key: speaker.choose(name, cfg, key=key) for key, name in roles.items()}
    warnings.filterwarnings("ignore", category=FutureWarning)  # what libraries tell each other
    gc.disable()  # imports make no garbage, and to look for it takes a fifth of their time
    from manners import hardware
    from manners.chat import arena, dial, terminal

    gc.freeze()
    gc.enable()
    device = hardware.resolve(cfg.hardware.accelerator, cfg.hardware.precision, cfg.hardware.num_threads).kind
    keys = {one: key for key, one in chosen.items()}  # a model that plays both is loaded once
    loaded = {one: dial.load(one, device, key) for one, key in keys.items()}
    if cfg.arena:
        arena.run(cfg, {role: loaded[one] for role, one in chosen.items()})
    else:
        terminal.run(cfg, chosen["run"], loaded[chosen["run"]])
