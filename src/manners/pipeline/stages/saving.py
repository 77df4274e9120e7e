"""Save what a stage trained, load it again, and hold it against the trained model on one batch."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from peft import PeftModel
from transformers import GenerationConfig

from manners.data.tokenize import tokenize
from manners.errors import MannersError
from manners.evaluation.evaluate import per_example_nll
from manners.models import loading, lora
from manners.models.adapter_config import CONFIG
from manners.models.generation import Sampling, generation_config
from manners.pipeline.stages.context import RunContext, load_base
from manners.redact import redact_secrets
from manners.runtime.model_files import folder_digest, model_folder
from manners.runtime.paths import existing_path
from manners.runtime.run_dir import CONFIG_FILE

CHECKED_ROWS = 8  # held-out rows in the batch
TOLERANCE = 1e-4  # in nats or standard deviations, and relative: a hundred times what rounding makes in 32 bits


def save_config(cfg: DictConfig, out: Path) -> None:
    """Write the resolved config, as ``RunArtifact.config`` reads it: any text in it comes back as it is.

    Of the base model also its commit on the hub and its digest: an adapter is right on no other. ``OmegaConf.to_yaml``
    is not used: it writes a ``${`` that is no interpolation, and control characters, so that they are read as something
    else.
    """
    values: Any = escape_interpolations(OmegaConf.to_container(cfg, resolve=True))
    folder = model_folder(cfg.model.name, cfg.model.revision)
    if folder and folder.parent.name == "snapshots":  # of the hub's cache
        values["model"]["revision"] = folder.name
    for group, name in (("model", "name"), ("dataset", "path"), ("dataset", "eval_prompts_file")):
        path = values[group][name]
        if path and path != "tiny" and (local := existing_path(path)):  # it must be found from any working directory
            values[group][name] = str(local.absolute())
    for entry in values["dataset"]["mix"] or []:
        if local := existing_path(entry["path"]):
            entry["path"] = str(local.absolute())
    values["base_digest"] = folder_digest(folder) if folder else ""
    text = yaml.dump(values, None, get_omega_conf_dumper(), allow_unicode=False, sort_keys=False)
    (out / CONFIG_FILE).write_text(redact_secrets(text), encoding="utf-8")


def escape_interpolations(value: Any) -> Any:
    """Escape each ``${`` in the texts of ``value``: a backslash before it, and twice those that stand there."""
    if isinstance(value, dict):
        return {key: escape_interpolations(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape_interpolations(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def save_language_model(cfg: DictConfig, model: Any, tokenizer: Any, out: Path) -> None:
    """Adapter or weights, tokenizer with its template, generation config: what transformers and peft load alone."""
    lora.save_pretrained(model, out)
    save_model_files(cfg, model, tokenizer, out)


def save_model_files(cfg: DictConfig, model: Any, tokenizer: Any, out: Path) -> None:
    """Tokenizer, generation config and run config beside the weights of a language model."""
    tokenizer.save_pretrained(out)
    measured_decoding(cfg, model, tokenizer).save_pretrained(out)
    save_config(cfg, out)


def measured_decoding(cfg: DictConfig, model: Any, tokenizer: Any) -> GenerationConfig:
    """The decoding of the run's report, for a generation_config.json. The limit on the length is not part of it."""
    e, stops = cfg.evaluation, loading.stop_token_ids(model, tokenizer)
    temperature = e.temperature if e.do_sample else 0.0
    return generation_config(Sampling(e.max_new_tokens, tuple(stops), tokenizer.pad_token_id, temperature))


def save_policy(run: RunContext, model: Any, tokenizer: Any) -> None:
    """Save ``model``, and check what was saved. Raises MannersError where it is not what was trained.

    Of an adapter on an SFT adapter one adapter is made, on the original base model; of an adapter on the whole weights
    of an earlier run whole weights, so that the folder is enough. So too where one of two adapters is a DoRA.
    """
    out, policy = run.path / "model", run.inputs.get("policy")
    losses = held_out_losses(run, model, tokenizer)
    if not isinstance(model, PeftModel) or policy is None:
        save_language_model(run.cfg, model, tokenizer, out)
    elif (policy.model_dir / CONFIG).exists() and not lora.is_dora(model, policy.model_dir):
        lora.save_combined_adapter(model, policy.model_dir, out)
        save_model_files(run.cfg, model, tokenizer, out)
    else:
        save_language_model(run.cfg, model.merge_and_unload(), tokenizer, out)
    release_memory(run, model)
    check_same("held-out loss", losses, held_out_losses(run, load_saved_policy(run, tokenizer), tokenizer), out)


def load_saved_policy(run: RunContext, tokenizer: Any) -> Any:
    """The model in the run's model directory, on its base where it is an adapter."""
    cfg, out = run.cfg, run.path / "model"
    if (out / CONFIG).exists():
        model: Any = lora.load_adapter(load_base(cfg, run.device), out, tokenizer)
    else:
        model = loading.load_model(str(out), attn_implementation=cfg.model.attn_implementation)
    return model if cfg.adapter.quantization != "none" else model.to(run.device.kind)


def held_out_losses(run: RunContext, model: Any, tokenizer: Any) -> list[float]:
    """Nats per token of each of a few held-out rows."""
    m = run.cfg.method
    max_length = m.get("max_length") or m.max_prompt_length + m.response_length
    examples = tokenize(run.test_rows, tokenizer, run.cfg.dataset.loss_roles, max_length)
    nll, num_tokens = per_example_nll(model, examples[:CHECKED_ROWS])
    return list(nll / np.maximum(num_tokens, 1))


def release_memory(run: RunContext, model: Any) -> None:
    """Move the trained model off a GPU, which may have no room for it and the one that was saved."""
    if run.device.kind != "cpu":
        model.to("cpu")


def check_same(name: str, trained: Sequence[float], saved: Sequence[float], folder: Path) -> None:
    """Raises MannersError, with both values, where one of the batch differs by more than rounding."""
    for before, after in zip(trained, saved, strict=True):
        if not math.isclose(before, after, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            raise MannersError(
                f"{folder} is not the model that was trained: on one and the same row the {name} is {before:.4f} as "
                f"trained and {after:.4f} as loaded from there. Please report it, with the config of this run."
            )
