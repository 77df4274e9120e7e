"""Load a model and its tokenizer by name: the packaged tiny base, a local folder, or the hub.

Weights come as safetensors only, and no model brings code of its own.
"""

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from manners.errors import MannersError
from manners.models.templates import TEMPLATES
from manners.runtime import hub
from manners.runtime.paths import existing_path

logging.disable_progress_bar()  # loading takes a moment; training has a bar of its own
HEADS = ("score.", "classifier.", "pooler.")  # a base has none; a reward model's is drawn here
SAFE = {"trust_remote_code": False}


def resolve_name(name: str) -> str:
    """'tiny' → the folder in the package; anything else is a folder or a hub name already."""
    return str(files("manners.models") / "tiny") if name == "tiny" else name


def weight_bytes(name: str) -> float:
    """Bytes of the weights' files; infinity where they are not on this machine yet."""
    path = Path(resolve_name(name))
    if not path.is_dir():
        cached = try_to_load_from_cache(name, "config.json")
        if not isinstance(cached, str):
            return math.inf
        path = Path(cached).parent
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) or math.inf


def load_tokenizer(
    name: str,
    revision: str | None = None,
    chat_template: str = "auto",
    chats: bool = True,
    added_tokens: Sequence[str] = (),
) -> PreTrainedTokenizerBase:
    """The tokenizer, with a padding token, padding on the right, and for what ``chats`` a chat template.

    ``added_tokens`` become tokens of their own; the model's embeddings must grow with them (``adapters.grow``).
    """
    tokenizer = _load(AutoTokenizer.from_pretrained, name, revision)
    tokenizer.add_special_tokens({"additional_special_tokens": list(added_tokens)})
    if chat_template != "auto":
        tokenizer.chat_template = TEMPLATES[chat_template]
    if chats and tokenizer.chat_template is None:
        raise MannersError(f"model.name={name} brings no chat template. Give it one: model.chat_template=plain.")
    if tokenizer.pad_token is None:  # only fills rows: labels and masks never depend on it
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(
    name: str,
    revision: str | None = None,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    quantization: str = "none",
    double_quantization: bool = True,
    auto: Any = AutoModelForCausalLM,
    **kwargs: Any,
) -> PreTrainedModel:
    """The model as ``auto`` builds it, on the CPU, dropout off until it trains. ``dtype`` is that of its weights.

    QLoRA (Dettmers et al. 2023, arXiv 2305.14314): ``quantization="nf4"`` stores the linear layers in 4 bits.
    """
    kwargs |= {"dtype": dtype, "attn_implementation": attn_implementation, "use_safetensors": True}
    if quantization == "nf4":
        from transformers import BitsAndBytesConfig

        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double_quantization,
            bnb_4bit_compute_dtype=dtype,
        )
        kwargs["device_map"] = {"": "cuda" if torch.cuda.is_available() else "cpu"}
    model, told = _load(auto.from_pretrained, name, revision, output_loading_info=True, **kwargs)
    missing = [key for key in sorted(told["missing_keys"]) if not any(part in key for part in HEADS)]
    if missing:
        raise MannersError(
            f"model.name={name}: {missing[0]} and {len(missing) - 1} more of its weights are not in its files; "
            "transformers would draw them at random. Fetch it anew."
        )
    if quantization == "nf4":
        keep_4bit_differentiable(model)
    return model


def keep_4bit_differentiable(model: PreTrainedModel) -> None:
    """Where a CPU has bf16 instructions, bitsandbytes 0.50 packs 4-bit weights anew once a model has answered; what
    goes through them after that has no gradient, so training would stop half-way or go wrong. Here it must not.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _load(loader, name: str, revision: str | None, **kwargs):  # type: ignore[no-untyped-def]
    path = resolve_name(name)
    if not existing_path(path):
        if path.startswith(("/", ".", "~")):
            raise MannersError(f"model.name={name}: there is no such folder.")
        hub.go_offline_if_unreachable()
    try:
        return loader(path, revision=revision, **SAFE, **kwargs)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if existing_path(path):  # what is damaged in it is found by many libraries, each with errors of its own
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MannersError(f"model.name={name} cannot be loaded: {why}") from error
        raise hub.not_found_error("model", name, "model.name", error) from error


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids at which a reply ends: the tokenizer's EOS, what the checkpoint lists, and what its template writes."""
    listed = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])}
    for turn_end in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>"):
        if turn_end in (tokenizer.chat_template or "") and turn_end in tokenizer.get_vocab():
            ids.add(tokenizer.convert_tokens_to_ids(turn_end))
    return sorted(i for i in ids if i is not None)


def load_config(name: str, revision: str | None = None) -> Any:
    """The shape of a model, without its weights."""
    return _load(AutoConfig.from_pretrained, name, revision)


def context_length(name: str, revision: str | None = None) -> int:
    """The longest input that the model was built for, in tokens."""
    return int(getattr(load_config(name, revision), "max_position_embeddings", 2048))
