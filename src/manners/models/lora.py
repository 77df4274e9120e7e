"""Put a LoRA on a model, or leave it whole. Hu et al. 2021, arXiv 2106.09685.

PEFT's own defaults are weak (rank 8, alpha 8, query and value only); ours adapt every linear layer, which is where
LoRA comes close to full fine-tuning (Dettmers et al. 2023, section 4).
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


def prepare_for_training(
    model: Any,
    kind: str,
    r: int,
    lora_alpha: int,
    lora_dropout: float,
    target_modules: Any,
    gradient_checkpointing: bool = False,
    task_type: str = "CAUSAL_LM",
    tokens: Sequence[int] = (),
) -> PreTrainedModel | PeftModel:
    """``model`` ready for training: all its weights (``none``), or only a low-rank update (``lora``, ``qlora``).

    ``tokens`` are ids whose embeddings are trained besides. What is not in 4 bits stays in the format that it was
    loaded in: peft's prepare_model_for_kbit_training would make 32 bits of it, which for Qwen2.5-7B's embeddings is
    2 GB more.
    """
    if kind != "none":
        config = LoraConfig(
            task_type=task_type,  # SEQ_CLS trains and saves the new head too
            r=r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
            trainable_token_indices=list(tokens) or None,
        )
        model = get_peft_model(model, config)
        use_fused_lora(model)
    else:
        model.requires_grad_(True)  # an adapter that was merged has left its base frozen
    if gradient_checkpointing:
        model.enable_input_require_grads()  # a frozen embedding would cut the graph before the first checkpoint
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def load_adapter(base: Any, folder: Path, tokenizer: Any) -> PeftModel:
    """``base`` with the adapter in ``folder``, for use. Tokens that were added for it get their rows first."""
    resize_embeddings(base, tokenizer)
    return PeftModel.from_pretrained(base, str(folder)).eval()


def resize_embeddings(model: Any, tokenizer: Any) -> None:
    """Rows in the embeddings for tokens that were added to the tokenizer; each begins as the mean of the others."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def base_model_name(folder: Path) -> str:
    """The name of the model that the adapter in ``folder`` belongs to."""
    return str(LoraConfig.from_pretrained(str(folder)).base_model_name_or_path)


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name: all that a checkpoint has to hold."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def merged_for_generation(model: Any) -> Iterator[None]:
    """Within, a LoRA model on a CPU is one set of weights: decoding, which makes many small steps, is far faster."""
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
    """What is merged and unmerged within leaves no trace in the weights under a LoRA.

    They are put back bit by bit, where subtracting what was added would let them drift.
    """
    training = [p for p in model.parameters() if p.requires_grad]
    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    kept = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, kept, strict=True):
                layer.get_base_layer().weight.copy_(weight)
        for p in training:
            p.requires_grad_(True)


def is_quantized(model: Any) -> bool:
    return getattr(model.config, "quantization_config", None) is not None


def save_combined_adapter(model: PeftModel, earlier: Path, out: Path) -> None:
    """One adapter that does what ``earlier``, merged into the base, and ``model``'s on top of it do together.

    The sum of two low-rank updates is one of the summed rank: ``s₁B₁A₁ + s₂B₂A₂ = [s₁B₁ s₂B₂][A₁; A₂]``. So what PPO
    made of an SFT policy loads on the hub's own base, with no merged copy of it.
    """
    model.save_pretrained(str(out), safe_serialization=True, selected_adapters=["default"])
    first, second = LoraConfig.from_pretrained(str(earlier)), LoraConfig.from_pretrained(str(out))
    one, two = load_file(earlier / WEIGHTS), load_file(out / WEIGHTS)
    both = {}
    for name in one.keys() | two.keys():
        other = one.get(name, two.get(name))
        assert other is not None
        if ".lora_A." in name:  # (r, in)
            parts = [w.get(name, other.new_zeros(c.r, other.shape[1])) for w, c in ((one, first), (two, second))]
            both[name] = torch.cat(parts, 0).contiguous()
        else:  # (out, r)
            parts = [
                w.get(name, other.new_zeros(other.shape[0], c.r)) * (c.lora_alpha / c.r)
                for w, c in ((one, first), (two, second))
            ]
            both[name] = torch.cat(parts, 1).contiguous()
    save_file(both, out / WEIGHTS, metadata={"format": "pt"})
    rank = first.r + second.r
    second.r, second.lora_alpha = rank, rank
    second.target_modules = union_target_modules(first, second, both)
    second.base_model_name_or_path, second.inference_mode = first.base_model_name_or_path, True
    second.save_pretrained(out)


def union_target_modules(first: LoraConfig, second: LoraConfig, weights: dict[str, torch.Tensor]) -> set[str]:
    """The modules that either adapts. Where one names them by a pattern, which is text, all are named in full."""
    named = [c.target_modules for c in (first, second)]
    if any(isinstance(names, str) for names in named):
        return {name.split(".lora_")[0].removeprefix("base_model.model.") for name in weights}
    return {name for names in named for name in names or ()}


class FusedLoraLinear(Linear):
    """The layer while one adapter of the plain kind trains in its own number format; else it is peft's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
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
    """x (..., in), frozen W (out, in) and its bias (out,), A (r, in), B (out, r), and the scale s → y (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, bias: Any, a: Any, b: Any, scale: float) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (T, in)
        narrow = flat @ a.t()  # (T, r)
        y = torch.nn.functional.linear(flat, w, bias).addmm_(narrow, b.t(), alpha=scale)  # (T, out)
        ctx.save_for_backward(flat, narrow, w, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        flat, narrow, w, a, b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])  # (T, out)
        back = (grad @ b).mul_(ctx.scale)  # (T, r)
        of_x = (grad @ w).addmm_(back, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return of_x, None, None, back.t() @ flat, (grad.t() @ narrow).mul_(ctx.scale), None


def use_fused_lora(model: torch.nn.Module) -> None:
    """Have the LoRA layers of ``model`` compute so."""
    for layer in model.modules():
        if type(layer) is Linear:
            layer.__class__ = FusedLoraLinear
