"""Conversations in the terminal: a person with a model, or two models with each other."""

import gc
import warnings

from omegaconf import DictConfig

from manners.errors import MannersError
from manners.pipeline import model_ref


def run_chat(cfg: DictConfig) -> None:
    """What ``chat.py`` does. A name that means nothing is answered before torch is imported, which takes seconds."""
    if cfg.self_chat and cfg.turns < 1:
        raise MannersError("turns=0: nobody would speak. Set turns=8.", "turns")
    if cfg.prompt is not None and not cfg.prompt.strip():
        raise MannersError('prompt is empty: -p "some words"', "prompt")
    roles = {"user": cfg.user, "assistant": cfg.assistant} if cfg.self_chat else {"run": cfg.run}
    chosen = {key: model_ref.resolve_model(name, cfg, key=key) for key, name in roles.items()}
    warnings.filterwarnings("ignore", category=FutureWarning)  # what libraries tell each other
    gc.disable()  # imports make no garbage, and to look for it takes a fifth of their time
    from manners.chat import model, self_chat, terminal
    from manners.runtime.device import resolve_device

    gc.freeze()
    gc.enable()
    device = resolve_device(cfg.hardware.accelerator, cfg.hardware.precision, cfg.hardware.num_threads).kind
    keys = {one: key for key, one in chosen.items()}  # a model that plays both is loaded once
    loaded = {one: model.load_chat_model(one, device, key) for one, key in keys.items()}
    if cfg.self_chat:
        self_chat.run_self_chat(cfg, {role: loaded[one] for role, one in chosen.items()})
    else:
        terminal.run_terminal(cfg, chosen["run"], loaded[chosen["run"]])
