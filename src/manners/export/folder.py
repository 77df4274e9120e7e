"""The folder: weights, tokenizer, generation config and card, or nothing at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from manners.errors import MannersError
from manners.export import card
from manners.models import loading, lora
from manners.models.reward_model import NORMALIZER_FILE, load_reward_model
from manners.pipeline.model_ref import ModelRef

MADE_BY = "export.json"  # which run the folder is an export of: that run alone may overwrite it
WITH_REWARD = (NORMALIZER_FILE, "sanity.json")  # what a reward run's folder has besides: its units, what it saw through


def write_export(chosen: ModelRef, out: Path, dtype: str) -> None:
    """The run's model in ``dtype``, as a whole, in ``out``. It is made beside it and renamed when it is done.

    Raises MannersError where ``out`` is anything but an earlier export of this run.
    """
    assert chosen.config is not None and chosen.run is not None
    made_by = {"run": chosen.name, "run_id": chosen.run.run_id or chosen.run.mark}
    if out.exists() and (not (out / MADE_BY).exists() or json.loads((out / MADE_BY).read_text()) != made_by):
        raise MannersError(f"{out} is there already, and is no export of {chosen.name}: another place is --out FOLDER.")
    tokenizer = loading.load_tokenizer(chosen.model, require_template=chosen.config.model.decoder)
    is_reward = chosen.config.method.name == "reward"
    model = merged_reward_model(chosen, tokenizer) if is_reward else merged_language_model(chosen, tokenizer, dtype)
    part, old = (out.with_name(f".{out.name}.{end}") for end in ("part", "old"))
    for left_by_a_kill in (part, old):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    part.mkdir(parents=True)
    model.to(getattr(torch, dtype)).save_pretrained(part, safe_serialization=True)
    tokenizer.save_pretrained(part)
    add_older_names(part)
    for name in WITH_REWARD if is_reward else ():
        shutil.copy(Path(chosen.model) / name, part)
    (part / "README.md").write_text(card.write_model_card(chosen, tokenizer, dtype))
    (part / MADE_BY).write_text(json.dumps(made_by))
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def merged_language_model(chosen: ModelRef, tokenizer: Any, dtype: str) -> Any:
    """The model that the run taught, as one set of weights, which stops where a reply ends.

    An adapter is merged into the base as that is stored, and rounded once: never into the 4-bit weights that QLoRA
    trained it on, which would round away what was learned (peft#2321).
    """
    assert chosen.config is not None
    folder, origin = Path(chosen.model), chosen.config.model
    stored: Any = torch.float32 if dtype == "float32" else "auto"
    if (folder / lora.CONFIG).exists():
        whole: Any = loading.load_model(origin.name, origin.revision, dtype=stored)
        whole = lora.load_adapter(whole, folder, tokenizer).merge_and_unload()  # type: ignore[operator]
    else:
        whole = loading.load_model(str(folder), dtype=stored)
    whole.generation_config = GenerationConfig.from_pretrained(folder)
    return whole


def merged_reward_model(chosen: ModelRef, tokenizer: Any) -> Any:
    """The network that scores. Plain transformers reads a decoder's score before the first padding token.

    So where a reply ends in that very token, it must be told of none, and reads one reply at a time.
    """
    assert chosen.config is not None
    network = load_reward_model(Path(chosen.model), chosen.config.model.revision)
    if chosen.config.model.decoder:
        shared = tokenizer.pad_token_id == tokenizer.eos_token_id
        network.config.pad_token_id = None if shared else tokenizer.pad_token_id
    return network


def add_older_names(folder: Path) -> None:
    """Say again, in transformers 4's words, what 5 has renamed: llama.cpp's converter and others still read with 4.

    It fails on the list of special tokens; and knowing nothing of ``rope_parameters`` it would take its default angles
    without a word, and the model would babble.
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
