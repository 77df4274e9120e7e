"""Whether an adapter is a plain LoRA, ``W + scale · B A``, read from its files without torch or peft."""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from manners.errors import MannersError, did_you_mean

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Settings of peft's LoraConfig under which a LoRA stays plain. Every other one, and a new one of later versions, has
# to be off. Some only parametrise another setting: qalora_group_size that of use_qalora, eva_config one initialization.
PLAIN_SETTINGS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *(
        "init_lora_weights",
        "eva_config",
        "corda_config",
        "loftq_config",
        "lora_ga_config",
    ),
    *("runtime_config", "megatron_core", "qalora_group_size"),
}
NUMBERS_AND_PATTERNS = {
    **{"r": int | None, "lora_alpha": int | float | None},
    **{"rank_pattern": dict | None, "alpha_pattern": dict | None},
}
OFF: tuple[Any, ...] = (None, False, "none", [], {})
PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")  # the others change the base's weights too


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the adapter config as peft wrote it; {} if the folder has none. Raises MannersError if it is damaged."""
    file = folder / CONFIG
    if not file.exists():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError("it holds no JSON object")
        for name, kinds in NUMBERS_AND_PATTERNS.items():
            if not isinstance(config.get(name), kinds):
                raise TypeError(f"{name}={config[name]!r}")
        for pattern in (*(config.get("rank_pattern") or {}), *(config.get("alpha_pattern") or {})):
            re.compile(pattern)
    except (ValueError, TypeError, re.error) as error:
        raise MannersError(f"{file} is damaged: {error}.") from None
    return config


def alpha_of_layer(config: dict[str, Any], layer: str) -> float:
    """Return the alpha of the LoRA on ``layer``, a module's full name: that of the first pattern that matches."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    matching = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer))
    return next(matching, config["lora_alpha"])


def special_settings(config: dict[str, Any], allowed: Iterable[str] = ()) -> list[str]:
    """Return the settings, as ``name=value``, that make an adapter more than a plain LoRA, less those ``allowed``."""
    init = config.get("init_lora_weights", True)
    special = {} if init in PLAIN_INITS else {"init_lora_weights": init}
    if config.get("peft_type") != "LORA":
        special["peft_type"] = config.get("peft_type")
    special |= {key: value for key, value in config.items() if key not in PLAIN_SETTINGS and value not in OFF}
    return [f"{key}={json.dumps(value)[:60]}" for key, value in special.items() if key not in allowed]


def check_target_modules(targets: Any, model_folder: Path | None) -> None:
    """Refuse names of layers that the weights in ``model_folder`` lack: ``lora.prepare_for_training`` does, but later.

    Nothing is said of patterns, and of models whose experts transformers joins when it loads them. Raises MannersError.
    """
    layers: set[str] = set()
    for file in model_folder.glob("*.safetensors") if model_folder else ():
        with suppress(SafetensorError), safe_open(file, "numpy") as weights:
            layers |= {key.removesuffix(".weight") for key in weights.keys() if key.endswith(".weight")}  # noqa: SIM118
    if isinstance(targets, str) or not layers or any("experts" in layer for layer in layers):
        return
    for target in targets:
        if not any(f".{layer}".endswith(f".{target}") for layer in layers):
            option = f"adapter.target_modules=[{','.join(targets)}]"
            known = sorted({layer.rpartition(".")[2] for layer in layers})
            raise MannersError(f"{option}: this model has no layer '{target}'. {did_you_mean(target, known)}")


def check_plain_lora(folder: Path, name: str, allow_dora: bool = False) -> None:
    """Refuse the adapter in ``folder``, which ``name`` stands for, unless it is a plain LoRA of linear layers.

    ``allow_dora`` accepts their magnitudes too. Raises MannersError that names each setting, or else the first weight,
    that makes it more.
    """
    special = special_settings(read_adapter_config(folder), ("use_dora",) * allow_dora)
    if not (folder / WEIGHTS).exists():
        raise MannersError(f"{name}: {folder} has no {WEIGHTS}; save the adapter anew by a recent peft.")
    try:
        with safe_open(folder / WEIGHTS, "numpy") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  (no dict)
    except SafetensorError as error:
        raise MannersError(f"{name}: {folder / WEIGHTS} is damaged: {error}.") from None
    ndim = {".lora_A.weight": 2, ".lora_B.weight": 2} | ({".lora_magnitude_vector": 1} if allow_dora else {})
    suffix = re.compile(r"\.lora_[^.]+(\.weight)?$")
    special += [
        key for key, shape in shapes.items() if not (found := suffix.search(key)) or ndim.get(found[0]) != len(shape)
    ][: not special]
    if special:
        raise MannersError(
            f"{name} is more than a plain LoRA of linear layers ({', '.join(special)}): merge it into its base "
            "(peft: merge_and_unload, save_pretrained) and name the merged folder."
        )
