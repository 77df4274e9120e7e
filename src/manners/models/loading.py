"""Load a model by name: the packaged ``tiny`` base, a local folder, or a name on the hub.

Weights are read from safetensors only, and no code that comes with a model is run.
"""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from manners.data.rendering import reply_stop_tokens
from manners.errors import MannersError
from manners.models import attention as attention  # registers itself with transformers
from manners.models.pretrained import from_pretrained
from manners.runtime.packages import PACKAGES

# Their first positions stand for padding: a row begins at the position after pad_token_id.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "longformer")

logging.set_verbosity_error()  # "newly initialized": as intended, or filled by the adapter that is loaded next
logging.disable_progress_bar()  # loading is short; training has a progress bar of its own


def load_model(
    name: str,
    revision: str | None = None,
    attn_implementation: str | None = None,
    dtype: torch.dtype = torch.float32,
    quantization: str = "none",
    double_quantization: bool = True,
    auto_class: Any = AutoModelForCausalLM,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a model with ``auto_class`` on the CPU, in eval mode, with weights in ``dtype``.

    ``quantization="nf4"`` stores the linear layers in 4 bits (QLoRA: Dettmers et al. 2023, arXiv 2305.14314). Of the
    checkpoint's generation config only the token ids are kept: see ``manners.models.generation``.

    ``attn_implementation=None`` leaves the choice to transformers.

    Where ``auto_class`` puts a new head on a base model, the attribute ``new_modules`` names what transformers drew at
    random because the checkpoint lacks it: the head, and a pooler. Raises MannersError if the model cannot be loaded,
    or if other weights are missing.
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
    model, loading_info = from_pretrained(
        auto_class.from_pretrained, name, revision, output_loading_info=True, **kwargs
    )
    drawn = sorted({*loading_info["missing_keys"], *(key for key, *_ in loading_info["mismatched_keys"])})
    new_head = auto_class is not AutoModelForCausalLM
    missing = [key for key in drawn if not (new_head and new_module(model, key))]
    if missing:
        raise MannersError(
            f"model.name={name}: {missing[0]} and {len(missing) - 1} more of its weights are missing in its files; "
            "transformers would initialize them at random. Download the model again."
        )
    if name in PACKAGES:  # an adapter names the model, wherever its weights are
        model.name_or_path = name
    model.new_modules = sorted({new_module(model, key) for key in drawn})
    if model.can_generate():
        ids = {key: getattr(model.generation_config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**ids)
    if quantization == "nf4":
        keep_4bit_differentiable(model)
    return model


def new_module(model: PreTrainedModel, weight: str) -> str:
    """Return the module of a new head, or the pooler, that ``weight`` is in; "" for a weight of the model's trunk."""
    if "pooler" in weight:
        return weight.partition("pooler")[0] + "pooler"
    child = weight.partition(".")[0]
    return "" if child == model.base_model_prefix else child


def keep_4bit_differentiable(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for inference, which would cut the gradient.

    On CPUs with bf16 instructions, bitsandbytes 0.50 repacks the weights at the first forward pass in eval mode. What
    passes through them afterwards has no gradient, so training would fail, or train wrongly, from then on.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a reply: the tokenizer's EOS, the checkpoint's, and the template's own."""
    listed = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])}
    if tokenizer.chat_template is not None:
        ids |= {tokenizer.convert_tokens_to_ids(token) for token in reply_stop_tokens(tokenizer)}
    return sorted(i for i in ids if i is not None)


def load_config(name: str, revision: str | None = None) -> Any:
    """Load a model's config, without its weights."""
    return from_pretrained(AutoConfig.from_pretrained, name, revision)


def context_length(name: str, revision: str | None = None) -> int:
    """Return the longest input, in tokens, that the model was built for."""
    return max_positions(load_config(name, revision))


def max_positions(config: Any) -> int:
    """Return the longest input, in tokens, of a model with this config."""
    text = config.get_text_config()
    positions = int(getattr(text, "max_position_embeddings", 2048))
    return positions - (text.pad_token_id + 1 if text.model_type in OFFSET_POSITIONS else 0)
