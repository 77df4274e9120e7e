"""Load a model for chat with an adjustable adapter scale: 0 is the base model, 1 the trained model, 2 twice the change.

With LoRA, a forward hook adds the scaled update to the output of each layer; no weight changes, so that switching
scales accumulates no rounding error. After full fine-tuning, and with DoRA, the weights are interpolated. peft's
``set_scale`` could replace the hooks, but importing and applying peft makes a chat start about a third later.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from transformers.utils import logging

from manners.errors import MannersError
from manners.models import loading
from manners.models.adapter_config import CONFIG, WEIGHTS, alpha_of_layer, read_adapter_config, special_settings
from manners.models.pretrained import resolve_name
from manners.models.tokenizer import load_tokenizer
from manners.pipeline.model_ref import ModelRef

TOKEN_ROWS = "trainable_tokens_delta"  # trained embedding rows; despite peft's name they are values, not differences
EMBEDDINGS = r"\.(embed_tokens|lm_head|wte|embed_in|embed_out)(\.token_adapter\.base_layer)?\.weight"
KNOWN_WEIGHTS = re.compile(rf"\.lora_[AB]\.weight$|{TOKEN_ROWS}$|{EMBEDDINGS}$")

MORE_THAN_PLAIN = (
    "{} is more than a plain LoRA ({}). Merge it first (peft: merge_and_unload, save_pretrained), and name the merged "
    "folder."
)

SetScale = Callable[[float], None]
Bases = dict[tuple[str, str | None, bool], Any]  # models without an adapter, by name, revision, and whether in 4 bits


@dataclass(frozen=True)
class ChatModel:
    """A model with its tokenizer and its adapter scale."""

    name: str
    model: Any
    tokenizer: Any
    base_name: str  # the model that it was trained from; "" if unknown
    set_scale: SetScale  # raises MannersError if there is no base model


def load_chat_model(ref: ModelRef, device: str, key: str = "run", bases: Bases | None = None) -> ChatModel:
    """The model of ``ref`` on ``device`` at scale 1, in float32, or in 4 bits if it was trained so.

    Plain LoRAs share the weights of one base where they are given the same ``bases``; then the scales of all but the
    one in use have to be 0. Raises MannersError, in terms of the option ``key``, if the model cannot be loaded or has
    no chat template.
    """
    logging.set_verbosity_error()  # silences the warning about newly added embeddings
    train_cfg, folder = ref.config, Path(resolve_name(ref.path))
    adapter_config = read_adapter_config(folder)
    base_name = train_cfg.model.name if train_cfg else adapter_config.get("base_model_name_or_path", "")
    revision = train_cfg.model.revision if train_cfg else adapter_config.get("revision")
    four_bit = train_cfg is not None and train_cfg.adapter.quantization != "none"
    shares = bases is not None and bool(adapter_config) and adds_nothing_but_updates(folder, adapter_config)
    loaded, known = (bases if shares and bases is not None else {}), (base_name, revision, four_bit)

    def load_base() -> Any:
        ref.check_base()
        try:
            return loaded[known] if known in loaded else load_weights(*known, device)
        except MannersError as error:
            raise MannersError(f"{ref.name} was trained from {base_name}. {error}") from None

    has_tokenizer = not adapter_config or (folder / "tokenizer_config.json").exists()
    try:
        tokenizer = load_tokenizer(ref.path if has_tokenizer else base_name, None, require_template=False)
        model = load_base() if adapter_config else load_weights(ref.path, None, False, device)
    except MannersError as error:  # which names the option of train.py
        raise MannersError(str(error).replace("model.name=", f"{key}=")) from None
    if tokenizer.chat_template is None:
        raise MannersError(
            f"{key}={ref.name} has no chat template, so it cannot chat. Train it on conversations first: "
            f"python train.py model.name={ref.name} model.chat_template=plain"
        )
    if shares:
        loaded[known] = model
    if adapter_config.get("use_dora"):
        model = merge_dora(model, folder, adapter_config, tokenizer)
        set_scale = interpolate_weights(model, load_base)
    elif adapter_config:
        set_scale = scale_lora(model, folder, adapter_config)
    elif train_cfg:
        set_scale = interpolate_weights(model, load_base)
    else:
        set_scale = fixed_scale(ref.name)
    return ChatModel(ref.name, model, tokenizer, base_name, set_scale)


def load_weights(name: str, revision: str | None, four_bit: bool, device: str) -> Any:
    """The model ``name`` on ``device``, in float32 or in 4 bits."""
    model: Any = loading.load_model(name, revision, quantization="nf4" if four_bit else "none")
    return model if four_bit else model.to(device)


def adds_nothing_but_updates(folder: Path, adapter_config: dict[str, Any]) -> bool:
    """Whether an adapter leaves all weights of its base as they are: no DoRA, and no embeddings of its own."""
    with safe_open(folder / WEIGHTS, "pt") as weights:
        return not adapter_config.get("use_dora") and all(".lora_" in name for name in weights.keys())  # noqa: SIM118


def check_known_weights(folder: Path, adapter_config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Raises MannersError unless the adapter is a plain LoRA: A (r, in) and B (out, r) of each adapted layer."""
    special = special_settings(adapter_config, allowed=("trainable_token_indices",))
    special += [name for name in weights if not KNOWN_WEIGHTS.search(name)]
    if special:
        raise MannersError(MORE_THAN_PLAIN.format(folder, ", ".join(special[:3])))
    ranks = {len(weight) for name, weight in weights.items() if name.endswith(".lora_A.weight")}
    if not adapter_config.get("rank_pattern") and ranks - {adapter_config["r"]}:
        raise MannersError(
            f"{folder}: {CONFIG} says r={adapter_config['r']}, and its weights are of rank {min(ranks)}: "
            "the two files are of different adapters."
        )


def merge_dora(base: Any, folder: Path, adapter_config: dict[str, Any], tokenizer: Any) -> Any:
    """The model with the DoRA in ``folder`` merged: its update depends on the base's weights, so that no hook adds it.

    Raises MannersError for a base in 4 bits, and for an adapter that is more than a DoRA.
    """
    from manners.models import lora  # and so peft, only where it is needed

    if special := special_settings(adapter_config, allowed=("use_dora", "trainable_token_indices")):
        raise MannersError(MORE_THAN_PLAIN.format(folder, ", ".join(special[:3])))
    if lora.is_quantized(base):
        raise MannersError(
            f"{folder} is a DoRA on a base in 4 bits, into which it cannot be merged: export it, python -m "
            f"manners.export {folder.parent} --out FOLDER, and name that folder."
        )
    return lora.load_adapter(base, folder, tokenizer).merge_and_unload()  # type: ignore[operator]


def scale_lora(model: Any, folder: Path, adapter_config: dict[str, Any]) -> SetScale:
    """Apply the LoRA in ``folder`` to ``model`` by forward hooks, and return the function that sets its scale.

    Each adapted layer returns ``W x + scale * lora_scale * B A x`` (Hu et al. 2021, arXiv 2106.09685).
    """
    weights = load_file(folder / WEIGHTS, device=str(model.device))
    check_known_weights(folder, adapter_config, weights)
    scale = 1.0
    trained_rows = load_added_embeddings(model, weights, adapter_config)

    def add_hook(layer: torch.nn.Module, alpha: float, lora_a: torch.Tensor, lora_b: torch.Tensor) -> None:
        """``lora_a`` (r, in), ``lora_b`` (out, r)."""
        rank = len(lora_a)
        lora_scale = alpha / (math.sqrt(rank) if adapter_config.get("use_rslora") else rank)

        def add_update(_layer: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:  # (B, T, out)
            if scale == 0:
                return output
            update = F.linear(F.linear(inputs[0].to(lora_a.dtype), lora_a), lora_b) * (lora_scale * scale)
            return output + update.to(output.dtype)

        layer.register_forward_hook(add_update)

    for name in [n.removesuffix(".lora_A.weight") for n in weights if n.endswith(".lora_A.weight")]:
        layer = name.removeprefix("base_model.model.")
        alpha = alpha_of_layer(adapter_config, layer)
        add_hook(model.get_submodule(layer), alpha, weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"])

    def set_scale(new_scale: float) -> None:
        nonlocal scale
        scale = new_scale
        with torch.no_grad():
            for weight, ids, before, after in trained_rows:
                weight[ids] = torch.lerp(before, after, new_scale)

    set_scale(1.0)
    return set_scale


def load_added_embeddings(
    model: Any, weights: dict[str, torch.Tensor], adapter_config: dict[str, Any]
) -> list[tuple[Any, ...]]:
    """Load the embeddings that were saved in full because tokens were added, resizing the model's to match.

    Returns, for each weight with trained rows: the weight (V, H), the row ids (N,), the rows before and after training,
    both (N, H).
    """
    full_weights = {n: w for n, w in weights.items() if ".lora_" not in n and not n.endswith(TOKEN_ROWS)}
    for name, weight in full_weights.items():
        if len(weight) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(weight), mean_resizing=False)
        embedding_weight(model, name).data.copy_(weight)
    trained_rows = []
    for name, after in weights.items():
        if name.endswith(TOKEN_ROWS):
            weight, ids = embedding_weight(model, name), adapter_config["trainable_token_indices"]
            ids = torch.tensor(ids if isinstance(ids, list) else next(iter(ids.values())), device=weight.device)
            trained_rows.append((weight, ids, weight.detach()[ids].clone(), after))
    return trained_rows


def embedding_weight(model: Any, name: str) -> Any:
    """'base_model.model.lm_head.token_adapter.base_layer.weight' → the weight of lm_head, (V, H)."""
    module = name.removeprefix("base_model.model.").removesuffix(".weight").split(".token_adapter")[0]
    return model.get_submodule(module).weight


def interpolate_weights(model: Any, load_base: Callable[[], Any]) -> SetScale:
    """Interpolate all weights between their values before and after full fine-tuning; the base loads on first use."""
    weights: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # current, before and after training

    def set_scale(scale: float) -> None:
        if not weights and scale != 1:
            base, size = load_base(), model.get_input_embeddings().num_embeddings
            if base.get_input_embeddings().num_embeddings != size:  # tokens were added
                base.resize_token_embeddings(size)
            pairs = zip(model.parameters(), base.parameters(), strict=True)
            weights.extend((now.data, before.data, now.detach().clone()) for now, before in pairs)
        for now, before, after in weights:
            torch.lerp(before, after, scale, out=now)

    return set_scale


def fixed_scale(name: str) -> SetScale:
    """The function for a model without a base: it raises MannersError for any scale other than 1."""

    def set_scale(scale: float) -> None:
        if scale != 1:
            raise MannersError(
                f"{name} was not trained here: it has no base model for /base, /compare and /scale. "
                "Choose a run: run=latest."
            )

    return set_scale
