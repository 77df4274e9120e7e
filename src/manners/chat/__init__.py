"""Chat in the terminal: a person with a model, or two models with each other."""

import gc
import warnings

from omegaconf import DictConfig

from manners.errors import MannersError
from manners.pipeline import model_ref


def run_chat(cfg: DictConfig) -> None:
    """Run ``chat.py``. Raises MannersError for wrong options before torch is imported, which takes seconds."""
    if cfg.prompt is not None and not cfg.prompt.strip():
        raise MannersError('prompt is empty: -p "some words"', "prompt")
    names = {"user": cfg.user, "assistant": cfg.assistant} if cfg.self_chat else {"run": cfg.run}
    refs = {key: model_ref.resolve_model(name, cfg, key=key) for key, name in names.items()}
    model_ref.use_experiment_of(list(refs.values()), cfg)
    warnings.filterwarnings("ignore", category=FutureWarning)  # addressed to library authors
    gc.disable()  # imports create no garbage, and collections would take a fifth of their time
    from manners.chat import model, self_chat, terminal
    from manners.runtime.device import inference_device

    gc.freeze()
    gc.enable()
    device = inference_device(cfg.hardware)
    keys = {ref: key for key, ref in refs.items()}  # a model in both roles is loaded once
    models = {ref: model.load_chat_model(ref, device.kind, key) for ref, key in keys.items()}
    with device.autocast():
        if cfg.self_chat:
            self_chat.run_self_chat(cfg, {role: models[ref] for role, ref in refs.items()})
        else:
            terminal.run_terminal(cfg, refs["run"], models[refs["run"]])
