"""The manner as a dial: how much of what training changed is at work, from none (0) over all (1) to twice (2).

What a LoRA adds to a layer is multiplied by the scale where the layer is at work, so that no weight is touched and
nothing can drift. After full fine-tuning the weights themselves are interpolated. peft would do for the first, but with
it a chat begins a third later.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers.utils import logging

from manners.errors import MannersError
from manners.models import loading
from manners.pipeline.model_ref import ModelRef

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKEN_ROWS = (
    "trainable_tokens_delta"  # what peft calls the trained embeddings of single tokens, though it is no difference
)
EMBEDDINGS = r"\.(embed_tokens|lm_head|wte|embed_in|embed_out)(\.token_adapter\.base_layer)?\.weight"
KNOWN_WEIGHTS = re.compile(rf"\.lora_[AB]\.weight$|{TOKEN_ROWS}$|{EMBEDDINGS}$")
UNSUPPORTED = ("alpha_pattern", "modules_to_save", "layer_replication", "use_dora", "use_qalora", "arrow_config")

SetScale = Callable[[float], None]


@dataclass(frozen=True)
class ChatModel:
    """A model that speaks, with its dial."""

    name: str
    model: Any
    tokenizer: Any
    origin: str  # the model that it was trained from; "" where nobody knows
    turn: SetScale  # sets the scale; raises MannersError where there is nothing to turn


def load_chat_model(chosen: ModelRef, device: str, key: str = "run") -> ChatModel:
    """The model of a run or a name, in 32 bits (4-bit where it was trained so), on ``device``, at scale 1."""
    logging.set_verbosity_error()  # "these embeddings are new": so they are meant
    made_by, folder = chosen.config, Path(loading.resolve_name(chosen.model))
    adapter = read_adapter_config(folder)
    origin = made_by.model.name if made_by else adapter.get("base_model_name_or_path", "")
    revision = made_by.model.revision if made_by else adapter.get("revision")
    four_bit = made_by is not None and made_by.adapter.quantization != "none"

    def load_origin() -> Any:
        try:
            return load_base_model(origin, revision, four_bit, device)
        except MannersError as error:
            raise MannersError(f"{chosen.name} was trained from {origin}. {error}") from None

    own_tokenizer = not adapter or (folder / "tokenizer_config.json").exists()
    try:
        tokenizer = loading.load_tokenizer(chosen.model if own_tokenizer else origin, None, require_template=False)
        model = load_origin() if adapter else load_base_model(chosen.model, None, False, device)
    except MannersError as error:  # it names the option of a training
        raise MannersError(str(error).replace("model.name=", f"{key}=")) from None
    if tokenizer.chat_template is None:
        raise MannersError(
            f"{key}={chosen.name} brings no chat template, so it knows no turns. Train it on some first: "
            f"python train.py model.name={chosen.name} model.chat_template=plain"
        )
    turn = (
        scale_lora(model, folder, adapter)
        if adapter
        else interpolate_weights(model, load_origin)
        if made_by
        else no_scaling(chosen.name)
    )
    return ChatModel(chosen.name, model, tokenizer, origin, turn)


def load_base_model(name: str, revision: str | None, four_bit: bool, device: str) -> Any:
    model: Any = loading.load_model(name, revision, quantization="nf4" if four_bit else "none")
    return model if four_bit else model.to(device)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's settings as peft wrote them; {} where the folder holds none."""
    file = folder / CONFIG
    return dict(json.loads(file.read_text())) if file.exists() else {}


def check_plain_lora(folder: Path, adapter: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Refuse whatever is not ``lora_scale·B·A`` on layers."""
    more = [name for name in UNSUPPORTED if adapter.get(name)] + [
        name for name in weights if not KNOWN_WEIGHTS.search(name)
    ]
    if adapter["peft_type"] != "LORA" or more:
        raise MannersError(
            f"{folder} is more than a plain LoRA ({', '.join([adapter['peft_type'], *more][:3])}). Merge it first "
            "(peft: merge_and_unload, save_pretrained), and name the merged folder."
        )


def scale_lora(model: Any, folder: Path, adapter: dict[str, Any]) -> SetScale:
    """Hu et al. 2021, arXiv 2106.09685: each adapted layer gives ``Wx + scale·lora_scale·BAx``."""
    weights = load_file(folder / WEIGHTS, device=str(model.device))
    check_plain_lora(folder, adapter, weights)
    scale = 1.0
    rows = load_added_embeddings(model, weights, adapter)

    def adapt(layer: torch.nn.Module, down: torch.Tensor, up: torch.Tensor) -> None:  # (r, in), (out, r)
        lora_scale = adapter["lora_alpha"] / (math.sqrt(len(down)) if adapter.get("use_rslora") else len(down))

        def add(_layer: Any, inputs: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
            if scale == 0:
                return out
            update = F.linear(F.linear(inputs[0].to(down.dtype), down), up) * (lora_scale * scale)
            return out + update.to(out.dtype)

        layer.register_forward_hook(add)

    for name in [n.removesuffix(".lora_A.weight") for n in weights if n.endswith(".lora_A.weight")]:
        layer = model.get_submodule(name.removeprefix("base_model.model."))
        adapt(layer, weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"])

    def turn(to: float) -> None:
        nonlocal scale
        scale = to
        with torch.no_grad():
            for weight, ids, before, after in rows:
                weight[ids] = torch.lerp(before, after, to)

    turn(1.0)
    return turn


def load_added_embeddings(
    model: Any, weights: dict[str, torch.Tensor], adapter: dict[str, Any]
) -> list[tuple[Any, ...]]:
    """Puts in place the embeddings that were saved whole, as they are where tokens were added.

    Of those rows that were trained: the weight, its rows, what they were and what they became.
    """
    saved = {n: w for n, w in weights.items() if ".lora_" not in n and not n.endswith(TOKEN_ROWS)}
    for name, weight in saved.items():
        if len(weight) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(weight), mean_resizing=False)
        embedding_weight(model, name).data.copy_(weight)
    found = []
    for name, after in weights.items():
        if name.endswith(TOKEN_ROWS):
            weight, ids = embedding_weight(model, name), adapter["trainable_token_indices"]
            ids = torch.tensor(ids if isinstance(ids, list) else next(iter(ids.values())), device=weight.device)
            found.append((weight, ids, weight.detach()[ids].clone(), after))
    return found


def embedding_weight(model: Any, name: str) -> Any:
    """'base_model.model.lm_head.token_adapter.base_layer.weight' → the weight of lm_head."""
    module = name.removeprefix("base_model.model.").removesuffix(".weight").split(".token_adapter")[0]
    return model.get_submodule(module).weight


def interpolate_weights(model: Any, load_origin: Callable[[], Any]) -> SetScale:
    """Every weight on the line from what it was to what it became. The origin is loaded when it is first asked for."""
    ends: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # the weight, before and after training

    def turn(to: float) -> None:
        if not ends and to != 1:
            origin, size = load_origin(), model.get_input_embeddings().num_embeddings
            if origin.get_input_embeddings().num_embeddings != size:  # tokens were added
                origin.resize_token_embeddings(size)
            pairs = zip(model.parameters(), origin.parameters(), strict=True)
            ends.extend((now.data, was.data, now.detach().clone()) for now, was in pairs)
        for now, before, after in ends:
            torch.lerp(before, after, to, out=now)

    return turn


def no_scaling(name: str) -> SetScale:
    def turn(to: float) -> None:
        if to != 1:
            raise MannersError(
                f"{name} was not trained here: there is no model before it, so /base, /compare and scale have "
                "nothing to turn. Choose a run: run=latest."
            )

    return turn
