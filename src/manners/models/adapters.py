"""Put a LoRA on a model, or leave it whole. Hu et al. 2021, arXiv 2106.09685.

PEFT's own defaults are weak (rank 8, alpha 8, query and value only); ours adapt every linear layer, which is where
LoRA comes close to full fine-tuning (Dettmers et al. 2023, section 4).
"""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel


def adapt(
    model: Any,
    kind: str,
    r: int,
    lora_alpha: int,
    lora_dropout: float,
    target_modules: Any,
    gradient_checkpointing: bool = False,
) -> PreTrainedModel | PeftModel:
    """``model`` ready for training: all its weights (``none``), or only a low-rank update (``lora``, ``qlora``)."""
    if kind == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if kind != "none":
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
        )
        model = get_peft_model(model, config)
    if gradient_checkpointing:
        model.enable_input_require_grads()  # a frozen embedding would cut the graph before the first checkpoint
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name: all that a checkpoint has to hold."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
