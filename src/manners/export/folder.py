"""Write the export: merged weights, tokenizer, generation config and model card, atomically."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import GenerationConfig

from manners.errors import MannersError
from manners.export import card
from manners.models import loading, lora
from manners.models.adapter_config import CONFIG
from manners.models.reward_model import NORMALIZER_FILE, load_reward_model
from manners.models.tokenizer import load_tokenizer
from manners.pipeline.model_ref import ModelRef
from manners.pipeline.stages.saving import measured_decoding

EXPORT_FILE = "export.json"  # names the exported run: only an export of the same run may overwrite the folder
REWARD_FILES = (NORMALIZER_FILE, "sanity.json")  # copied from a reward run: score scale and sanity check


def write_export(ref: ModelRef, out: Path, dtype: str) -> None:
    """Export the run's model in ``dtype`` to ``out``, through a temporary folder that is renamed when complete.

    ``dtype="auto"`` is the dtype of the base model. Raises MannersError if ``out`` exists and is not an earlier export
    of this run.
    """
    assert ref.config is not None and ref.run is not None
    exported_run = {"run": ref.name, "run_id": ref.run.run_id or ref.run.fingerprint}
    marker = out / EXPORT_FILE
    if out.exists() and (not marker.exists() or json.loads(marker.read_text()) != exported_run):
        raise MannersError(
            f"{out} already exists and is not an export of {ref.name}: choose another folder by --out FOLDER."
        )
    if ref.config.adapter.kind == "frozen":
        raise MannersError(
            f"{ref.name} is a head on the hidden states of {ref.config.model.name}: transformers has no "
            "class for it. A reward model to export is trained with adapter=lora or adapter=none."
        )
    tokenizer = load_tokenizer(ref.path, require_template=ref.config.model.decoder)
    is_reward = ref.config.method.name == "reward"
    dtype = base_dtype(ref.config) if dtype == "auto" else dtype
    model = merged_reward_model(ref, tokenizer) if is_reward else merged_language_model(ref, tokenizer, dtype)
    part, old = (out.with_name(f".{out.name}.{end}") for end in ("part", "old"))
    for leftover in (part, old):  # of a killed export
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    model.to(getattr(torch, dtype)).save_pretrained(part, safe_serialization=True)
    tokenizer.save_pretrained(part)
    add_older_names(part)
    for name in REWARD_FILES if is_reward else ():
        shutil.copy(Path(ref.path) / name, part)
    (part / "README.md").write_text(card.write_model_card(ref, tokenizer, dtype))
    (part / EXPORT_FILE).write_text(json.dumps(exported_run))
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def base_dtype(cfg: DictConfig) -> str:
    """The name of the dtype that the base model is stored in."""
    dtype = loading.load_config(cfg.model.name, cfg.model.revision).dtype
    return str(dtype or torch.float32).removeprefix("torch.")


def merged_language_model(ref: ModelRef, tokenizer: Any, dtype: str) -> Any:
    """The run's language model with its adapter merged, and the decoding of the run's report.

    An adapter is merged into the base in the base's stored dtype and rounded once. QLoRA's is not merged into the 4-bit
    weights that it was trained on, because rounding to 4 bits would lose most of the update (peft#2321).
    """
    assert ref.config is not None
    folder, base = Path(ref.path), ref.config.model
    stored_dtype: Any = torch.float32 if dtype == "float32" else "auto"
    if (folder / CONFIG).exists():
        model: Any = loading.load_model(base.name, base.revision, base.attn_implementation, dtype=stored_dtype)
        model = lora.load_adapter(model, folder, tokenizer).merge_and_unload()  # type: ignore[operator]
    else:
        model = loading.load_model(str(folder), attn_implementation=base.attn_implementation, dtype=stored_dtype)
    model.generation_config = GenerationConfig.from_pretrained(folder)  # for the stop tokens that the run had
    model.generation_config = measured_decoding(ref.config, model, tokenizer)
    return model


def merged_reward_model(ref: ModelRef, tokenizer: Any) -> Any:
    """The reward model with its adapter merged.

    Plain transformers takes a decoder's score at the last token that is not padding. If the padding token also ends
    replies, the score would be one token early: the export has no padding token then, and scores one reply at a time.
    """
    assert ref.config is not None
    model = load_reward_model(Path(ref.path), ref.config.model.revision, ref.config.model.attn_implementation)
    if ref.config.model.decoder:
        pad_is_eos = tokenizer.pad_token_id == tokenizer.eos_token_id
        model.config.pad_token_id = None if pad_is_eos else tokenizer.pad_token_id
    return model


def add_older_names(folder: Path) -> None:
    """Repeat what transformers 5 renamed under its transformers 4 names, for llama.cpp's converter and other programs.

    Version 4 fails on the list of extra special tokens. It ignores ``rope_parameters`` and would silently use default
    RoPE frequencies, which makes the model generate nonsense.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text())
    rope = dict(config.get("rope_parameters") or {})
    neox = config["model_type"] == "gpt_neox"
    if "rope_theta" in rope:
        config["rotary_emb_base" if neox else "rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["rotary_pct" if neox else "partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = rope
    file.write_text(json.dumps(config, indent=2) + "\n")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
