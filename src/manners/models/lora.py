"""LoRA: add an adapter, load, merge and combine adapters, and a faster LoRA layer. Hu et al. 2021, arXiv 2106.09685.

PEFT's own defaults are weak (rank 8, alpha 8, query and value only). Ours adapt every linear layer, which brings LoRA
close to full fine-tuning (Dettmers et al. 2023, section 4).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

# --- Training ---


def prepare_for_training(
    model: Any,
    kind: str,
    r: int,
    lora_alpha: int,
    lora_dropout: float,
    target_modules: Any,
    gradient_checkpointing: bool = False,
    task_type: str = "CAUSAL_LM",
    trainable_token_indices: Sequence[int] = (),
) -> PreTrainedModel | PeftModel:
    """Make all weights of ``model`` trainable (``none``), or add a trainable LoRA (``lora``, ``qlora``).

    With a LoRA, the embeddings of ``trainable_token_indices`` train too. Weights that are not in 4 bits keep their
    dtype: peft's prepare_model_for_kbit_training would cast them to float32, 2 GB more for Qwen2.5-7B's embeddings.
    """
    if kind != "none":
        config = LoraConfig(
            task_type=task_type,  # with SEQ_CLS peft trains and saves the new head too
            r=r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
            trainable_token_indices=list(trainable_token_indices) or None,
        )
        model = get_peft_model(model, config)
        use_fused_lora(model)
    else:
        model.requires_grad_(True)  # merge_and_unload leaves the base model frozen
    if gradient_checkpointing:
        model.enable_input_require_grads()  # frozen embeddings would cut the graph before the first checkpoint
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the trainable parameters by name: all that a checkpoint has to hold."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# --- Loading and merging ---


def load_adapter(base: Any, folder: Path, tokenizer: Any) -> PeftModel:
    """Load the adapter in ``folder`` onto ``base`` for inference, after adding embeddings for its added tokens."""
    resize_embeddings(base, tokenizer)
    return PeftModel.from_pretrained(base, str(folder)).eval()


def resize_embeddings(model: Any, tokenizer: Any) -> None:
    """Add embeddings for tokens that were added to the tokenizer; transformers initialises them near the mean."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def base_model_name(folder: Path) -> str:
    """Return the name of the base model of the adapter in ``folder``."""
    return str(LoraConfig.from_pretrained(str(folder)).base_model_name_or_path)


@contextmanager
def merged_for_generation(model: Any) -> Iterator[None]:
    """Merge a LoRA into its base inside the context, on a CPU only: the many small decoding steps get far faster."""
    if not isinstance(model, PeftModel) or model.device.type != "cpu" or is_quantized(model):
        yield
        return
    with preserve_base_weights(model):
        model.merge_adapter(["default"])  # type: ignore[operator]
        try:
            yield
        finally:
            model.unmerge_adapter()  # type: ignore[operator]


@contextmanager
def preserve_base_weights(model: Any) -> Iterator[None]:
    """Restore the weights under a LoRA on exit, bit by bit, and what is trainable.

    Unmerging subtracts what merging added; its rounding errors would make the weights drift.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    saved_weights = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, saved_weights, strict=True):
                layer.get_base_layer().weight.copy_(weight)
        for p in trainable:
            p.requires_grad_(True)


def is_quantized(model: Any) -> bool:
    """Return whether the base weights are quantized."""
    return getattr(model.config, "quantization_config", None) is not None


# --- Combining two adapters into one ---


def save_combined_adapter(model: PeftModel, first_folder: Path, out: Path) -> None:
    """Save one adapter equal to the one in ``first_folder``, merged into the base, plus that of ``model`` on top.

    The sum of two low-rank updates is one of the summed rank: ``s₁B₁A₁ + s₂B₂A₂ = [s₁B₁ s₂B₂][A₁; A₂]``. So what PPO
    made of an SFT policy loads on the hub's own base model, without a merged copy of it.

    peft's ``add_weighted_adapter(combination_type="cat")`` computes the same, but only for adapters that are loaded in
    one model: the first would have to be added to the live policy, whose modules it would wrap for good, and peft
    refuses adapters of which one names its modules by a pattern and the other by a list.
    """
    model.save_pretrained(str(out), safe_serialization=True, selected_adapters=["default"])
    configs = LoraConfig.from_pretrained(str(first_folder)), LoraConfig.from_pretrained(str(out))
    weights = load_file(first_folder / WEIGHTS), load_file(out / WEIGHTS)
    combined = {}
    for name in weights[0].keys() | weights[1].keys():
        present = weights[0][name] if name in weights[0] else weights[1][name]
        is_a = ".lora_A." in name  # (r, in); else B, (out, r)
        parts = []
        for config, tensors in zip(configs, weights, strict=True):
            shape = (config.r, present.shape[1]) if is_a else (present.shape[0], config.r)
            part = tensors.get(name, present.new_zeros(shape))
            parts.append(part if is_a else part * (config.lora_alpha / config.r))
        combined[name] = torch.cat(parts, 0 if is_a else 1).contiguous()
    save_file(combined, out / WEIGHTS, metadata={"format": "pt"})
    first, config = configs
    config.target_modules = union_target_modules(first, config, combined)
    config.r = config.lora_alpha = first.r + config.r
    config.base_model_name_or_path, config.inference_mode = first.base_model_name_or_path, True
    config.save_pretrained(out)


def union_target_modules(first: LoraConfig, second: LoraConfig, weights: dict[str, torch.Tensor]) -> set[str]:
    """Return the modules that either adapts; by their full names where one config has a pattern (a string).

    ``weights`` are those of the combined adapter: A (r, in) and B (out, r) by name.
    """
    targets = [config.target_modules for config in (first, second)]
    if any(isinstance(names, str) for names in targets):
        return {name.split(".lora_")[0].removeprefix("base_model.model.") for name in weights}
    return {name for names in targets for name in names or ()}


# --- A faster LoRA layer ---


class FusedLoraLinear(Linear):
    """peft's LoRA layer with its forward and backward pass written by hand in ``LoraProduct``.

    The low-rank product is added in place to the output of the base layer, where peft allocates a tensor of the
    output's size for the product, the scaling and the sum each. Only the plain case is fused: one active, unmerged
    adapter in the dtype of the base layer, no dropout, no autocast. Everything else is left to peft's own forward.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Apply the layer: (..., in) → (..., out)."""
        (name, *others), base = self.active_adapters or [None], self.base_layer
        plain = name in self.lora_A and name not in self.lora_variant and not others and not args and not kwargs
        if not plain or self.disable_adapters or self.merged or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        if type(base) is not torch.nn.Linear or self.lora_bias[name] or not x.dtype == base.weight.dtype == a.dtype:
            return super().forward(x)
        if self.training and not isinstance(self.lora_dropout[name], torch.nn.Identity):
            return super().forward(x)
        return LoraProduct.apply(x, base.weight, base.bias, a, b, self.scaling[name])  # type: ignore[no-untyped-call]


class LoraProduct(torch.autograd.Function):
    """``y = x Wᵀ + bias + scale · (x Aᵀ) Bᵀ`` with A (r, in), B (out, r), and frozen W (out, in) and bias (out,)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, bias: Any, a: Any, b: Any, scale: float) -> torch.Tensor:
        """Compute y (..., out) of x (..., in)."""
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        down = flat @ a.t()  # (N, r)
        y = torch.nn.functional.linear(flat, w, bias).addmm_(down, b.t(), alpha=scale)  # (N, out)
        ctx.save_for_backward(flat, down, w, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        """Return the gradients of x (..., in), A (r, in) and B (out, r) from that of y (..., out)."""
        flat, down, w, a, b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])  # (N, out)
        grad_down = (grad @ b).mul_(ctx.scale)  # (N, r)
        grad_x = (grad @ w).addmm_(grad_down, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_down.t() @ flat, (grad.t() @ down).mul_(ctx.scale), None


def use_fused_lora(model: torch.nn.Module) -> None:
    """Turn the plain LoRA layers of ``model`` into ``FusedLoraLinear``, in place."""
    for layer in model.modules():
        if type(layer) is Linear:
            layer.__class__ = FusedLoraLinear
