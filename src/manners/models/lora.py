"""LoRA: add an adapter, load, merge and combine adapters, and a faster LoRA layer. Hu et al. 2021, arXiv 2106.09685.

PEFT's own defaults are weak (rank 8, alpha 8, query and value only). Ours adapt every linear layer, which brings LoRA
close to full fine-tuning (Dettmers et al. 2023, section 4).
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from manners.errors import MannersError, did_you_mean
from manners.models.adapter_config import WEIGHTS, alpha_of_layer, read_adapter_config
from manners.models.packed_weights import LinearProduct, can_pack, packed_weights

PREFIX = "base_model.model."  # of the names of weights in an adapter's file
FACTOR = re.compile(r"\.lora_[AB]\.weight$")
CHANGE_BASE = ("pissa", "olora")  # initializations that change the base's weights

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
    modules_to_save: Sequence[str] = (),
    use_rslora: bool = False,
    use_dora: bool = False,
    init_lora_weights: Any = True,
) -> PreTrainedModel | PeftModel:
    """Make all weights of ``model`` trainable (``none``), or add a trainable LoRA (``lora``, ``qlora``).

    With a LoRA, the embeddings of ``trainable_token_indices`` and the whole of ``modules_to_save`` train too. Weights
    that are not in 4 bits keep their dtype: peft's prepare_model_for_kbit_training would cast them to float32, 2 GB
    more for Qwen2.5-7B's embeddings. The last three are peft's: rsLoRA (Kalajdzievski 2023, arXiv 2312.03732), DoRA
    (Liu et al. 2024, arXiv 2402.09353), and the initialization, of which PiSSA (Meng et al. 2024, arXiv 2404.02948) and
    OLoRA (arXiv 2406.01775) subtract the first update from the base's weights: ``save_pretrained`` adds it again.

    Raises MannersError for ``target_modules`` that cannot be adapted, or not with this initialization.
    """
    if kind != "none":
        check_target_modules(model, target_modules)
        config = LoraConfig(
            task_type=task_type,
            r=r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
            exclude_modules=rf"({'|'.join(map(re.escape, modules_to_save))})(\..*)?" if modules_to_save else None,
            trainable_token_indices=list(trainable_token_indices) or None,
            modules_to_save=list(modules_to_save) or None,
            use_rslora=use_rslora,
            use_dora=use_dora,
            init_lora_weights=init_lora_weights,
        )
        try:
            model = get_peft_model(model, config)
        except ValueError as error:  # a pattern may match a layer that no LoRA is for
            raise MannersError(f"adapter.target_modules={target_modules}: {str(error).splitlines()[0]}") from None
        check_untied(model, f"adapter.target_modules={target_modules}")
        if str(init_lora_weights).startswith(CHANGE_BASE):
            check_decomposed(model, r, init_lora_weights)
            weights = get_peft_model_state_dict(model, save_embedding_layers=False)
            model.initial_factors = {k: w.detach().cpu().clone() for k, w in weights.items() if FACTOR.search(k)}
        use_fused_lora(model)
    else:
        model.requires_grad_(True)  # merge_and_unload leaves the base model frozen
    if gradient_checkpointing:
        model.enable_input_require_grads()  # frozen embeddings would cut the graph before the first checkpoint
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def check_target_modules(model: Any, target_modules: str | Sequence[str]) -> None:
    """Every name, or the pattern, matches a linear layer of ``model``: peft passes over a name that matches nothing.

    Raises MannersError with the nearest name.
    """
    linear = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D)]
    known = sorted({name.rpartition(".")[2] for name in linear})
    if isinstance(target_modules, str):
        option = f"adapter.target_modules={target_modules}"
        try:
            found = target_modules == "all-linear" or any(re.fullmatch(target_modules, name) for name in linear)
        except re.error as error:
            raise MannersError(f"{option} is no pattern: {error}.") from None
        if not found:
            near = f"Did you mean [{target_modules}]?" if target_modules in known else ""
            near = near or did_you_mean(target_modules, ["all-linear", *known])
            raise MannersError(f"{option} matches the full name of no linear layer. {near}")
        return
    option = f"adapter.target_modules=[{','.join(target_modules)}]"
    for target in target_modules:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise MannersError(f"{option}: this model has no linear layer '{target}'. {did_you_mean(target, known)}")


def check_untied(model: PeftModel, name: str) -> None:
    """Refuse a LoRA of the output layer where that shares its weight: merged, it would change the embeddings too.

    Raises MannersError, about ``name``.
    """
    ends: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(isinstance(layer, LoraLayer) for layer in ends) and ends[0].weight is ends[1].weight:
        raise MannersError(
            f"{name} adapts the output layer, whose weight is also that of the input embeddings in this model: adapt "
            "other layers, as adapter.target_modules=all-linear does."
        )


def check_decomposed(model: PeftModel, r: int, init: str) -> None:
    """Each layer of ``model`` has got factors of rank ``r`` that peft made of its weight. Raises MannersError."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            rank, option = min(layer.in_features or 0, layer.out_features or 0), f"adapter.init_lora_weights={init}"
            if rank < r:
                raise MannersError(f"{option}: {name} is of rank {rank}. Set adapter.r={rank} or less.")
            if init == "olora" and isinstance(layer.get_base_layer(), Conv1D):  # peft takes it for a Linear
                raise MannersError(f"{option}: peft cannot decompose a Conv1D such as {name}. Use pissa, or true.")


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the trainable parameters by name: all that a checkpoint has to hold."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# --- Saving, loading and merging ---


def save_pretrained(model: Any, out: Path) -> None:
    """Save the weights of ``model``, or its adapter "default", as plain transformers and peft load them.

    Where the base's weights W became ``W − s B₀A₀`` at the start (PiSSA, OLoRA), the trained adapter is right on them
    only. Saved is one of twice the rank that is right on W itself: ``s (BA − B₀A₀) = s [B −B₀][A; A₀]``. peft's
    ``path_initial_model_for_weight_conversion`` does the same, but leaves out all other weights: a reward model's head,
    embeddings of added tokens, DoRA's magnitudes.
    """
    if not isinstance(model, PeftModel):
        model.save_pretrained(out, safe_serialization=True)
        return
    model.save_pretrained(str(out), safe_serialization=True, selected_adapters=["default"])
    if initial := getattr(model, "initial_factors", None):
        weights = load_file(out / WEIGHTS)
        for key, first in initial.items():
            pair = (weights[key], first) if ".lora_A." in key else (weights[key], -first)
            weights[key] = torch.cat(pair, dim=0 if ".lora_A." in key else 1)  # (2r, in) or (out, 2r)
        save_file(weights, out / WEIGHTS, metadata={"format": "pt"})
        config = LoraConfig.from_pretrained(str(out))
        config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2  # type: ignore[assignment]
        config.r, config.init_lora_weights, config.inference_mode = 2 * config.r, True, True
        config.save_pretrained(out)


def load_adapter(base: Any, folder: Path, tokenizer: Any = None) -> PeftModel:
    """Load the adapter in ``folder`` onto ``base`` for inference, after adding embeddings for tokens of ``tokenizer``.

    Raises MannersError unless each of its weights has its place in ``base``; peft itself only warns.
    """
    if tokenizer is not None:
        resize_embeddings(base, tokenizer)
    try:
        model = PeftModel.from_pretrained(base, str(folder)).eval()
    except (RuntimeError, ValueError, KeyError) as error:  # of another shape, or no such layers
        reason = str(error).strip().splitlines()[-1].strip()
        raise MannersError(f"the adapter {folder} does not fit the model {base.name_or_path}: {reason}") from None
    expected, saved = get_peft_model_state_dict(model, save_embedding_layers=False), load_file(folder / WEIGHTS)
    misplaced = expected.keys() - saved.keys() | {key for key in saved.keys() - expected.keys() if ".lora_" in key}
    if misplaced:
        raise MannersError(
            f"the adapter {folder} does not fit the model {base.name_or_path}: {len(misplaced)} weights are in one of "
            f"them only, such as {min(misplaced)}. It was trained on another base."
        )
    check_untied(model, f"the adapter {folder}")
    return model


def resize_embeddings(model: Any, tokenizer: Any) -> None:
    """Add embeddings for tokens that were added to the tokenizer; transformers initializes them near the mean."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def base_model_name(folder: Path) -> str:
    """Return the name of the base model of the adapter in ``folder``."""
    return str(LoraConfig.from_pretrained(str(folder)).base_model_name_or_path)


@contextmanager
def merged_for_generation(model: Any) -> Iterator[None]:
    """Inside, a LoRA and its base are one weight, on a CPU only: the many small decoding steps get far faster.

    Linear layers multiply by packed copies of their weights, a LoRA by one of the sum, where that is possible; else the
    LoRA is merged into the weights of the base, which are restored. Under bf16 autocast weights are cast once, and not
    at each step. The model must not be trained inside.
    """
    if model.device.type != "cpu" or is_quantized(model):
        yield
        return
    adapted = isinstance(model, PeftModel)
    plain = all(is_plain(m) for m in model.modules() if isinstance(m, BaseTunerLayer | Conv1D))
    if plain and can_pack([m.weight for m in model.modules() if type(m) is torch.nn.Linear]):
        with packed_weights(merged_products(model)):
            yield
        return
    if not (adapted or torch.is_autocast_enabled("cpu")):
        yield
        return
    cast = weights_in_bf16(model) if torch.is_autocast_enabled("cpu") else nullcontext()
    if not adapted:
        with cast:
            yield
        return
    with preserve_base_weights(model):
        with torch.autocast("cpu", enabled=False):  # the sum is of numbers in 32 bits
            model.merge_adapter(["default"])  # type: ignore[operator]
        try:
            with cast:
                yield
        finally:
            model.unmerge_adapter()  # type: ignore[operator]


def is_plain(layer: Any) -> bool:
    """Whether ``layer`` is a linear layer with a LoRA that only adds a product of two factors to its weight."""
    return (
        isinstance(layer, Linear)
        and type(layer.base_layer) is torch.nn.Linear
        and layer.active_adapters == ["default"]
        and "default" in layer.lora_A
        and not layer.merged
        and not layer.lora_variant
        and not layer.lora_bias["default"]
    )


def merged_products(model: Any) -> Iterator[LinearProduct]:
    """The linear layers of ``model``, one at a time: plain ones, and LoRA with the layer that they adapt."""
    inside_lora: set[torch.nn.Module] = set()
    for layer in model.modules():
        if isinstance(layer, Linear):
            inside_lora.update(layer.modules())
            yield LinearProduct(layer, merged_weight(layer), layer.base_layer.bias)  # type: ignore[arg-type]
        elif type(layer) is torch.nn.Linear and layer not in inside_lora:
            yield LinearProduct(layer, layer.weight, layer.bias)


def merged_weight(layer: Linear) -> torch.Tensor:
    """The weight (out, in) of a plain LoRA and the layer that it adapts, in the number format of that layer."""
    weight: Any = layer.base_layer.weight
    with torch.autocast("cpu", enabled=False):  # the sum is of numbers in 32 bits
        return weight if layer.disable_adapters else (weight + layer.get_delta_weight("default")).to(weight.dtype)


@contextmanager
def frozen_weights_in_bf16(model: Any, enabled: bool) -> Iterator[None]:
    """``weights_in_bf16`` for what does not train, on a CPU where ``enabled``: autocast would cast it at each pass."""
    with weights_in_bf16(model, frozen_only=True) if enabled and model.device.type == "cpu" else nullcontext():
        yield


@contextmanager
def weights_in_bf16(model: Any, frozen_only: bool = False) -> Iterator[None]:
    """Hold the weights of linear layers in bf16 inside the context; outside they are what they were, bit by bit.

    Embeddings, norms and biases stay in 32 bits, as under autocast, and so what is computed under it is the same. An
    output layer that shares the weight of the embeddings has one of its own inside. Weights under a DoRA stay too,
    unless it is merged: it computes their norms.
    """
    dora = [m.get_base_layer() for m in model.modules() if isinstance(m, LoraLayer) and m.lora_variant and not m.merged]
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear | Conv1D)]
    layers = [layer for layer in layers if layer.weight.dtype == torch.float32 and layer not in dora]
    held = [(layer, layer.weight) for layer in layers if not (frozen_only and layer.weight.requires_grad)]
    try:
        for layer, weight in held:
            layer.weight = torch.nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
        yield
    finally:
        for layer, weight in held:
            layer.weight = weight


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


def is_dora(model: PeftModel, first_folder: Path) -> bool:
    """Return whether the adapter of ``model`` or that in ``first_folder`` is a DoRA: their sum is no adapter."""
    config: Any = model.peft_config["default"]
    return bool(config.use_dora or read_adapter_config(first_folder).get("use_dora"))


def save_combined_adapter(model: PeftModel, first_folder: Path, out: Path) -> None:
    """Save one adapter equal to the one in ``first_folder``, merged into the base, plus that of ``model`` on top.

    The sum of two low-rank updates is one of the summed rank: ``s₁B₁A₁ + s₂B₂A₂ = [s₁B₁ s₂B₂][A₁; A₂]``. So what PPO
    made of an SFT policy loads on the hub's own base model, without a merged copy of it. Both are plain LoRAs
    (``adapter_config.check_plain_lora``); where a layer's rank is smaller than that of others, zeros fill it up.

    peft's ``add_weighted_adapter(combination_type="cat")`` computes the same, but only for adapters that are loaded in
    one model: the first would have to be added to the live policy, whose modules it would wrap for good, and peft
    refuses adapters of which one names its modules by a pattern and the other by a list.
    """
    model.save_pretrained(str(out), safe_serialization=True, selected_adapters=["default"])
    adapters = [scaled_factors(folder) for folder in (first_folder, out)]
    rank = sum(max(len(a) for a, _ in factors.values()) for factors in adapters)
    names, combined = adapters[0].keys() | adapters[1].keys(), {}
    for name in names:
        parts = [factors[name] for factors in adapters if name in factors]
        a, b = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], 1)  # (r, in), (out, r)
        combined[f"{PREFIX}{name}.lora_A.weight"] = F.pad(a, (0, 0, 0, rank - len(a))).contiguous()
        combined[f"{PREFIX}{name}.lora_B.weight"] = F.pad(b, (0, rank - len(a))).contiguous()
    save_file(combined, out / WEIGHTS, metadata={"format": "pt"})
    config = LoraConfig.from_pretrained(str(out))
    config.r = config.lora_alpha = rank  # a scale of 1
    config.use_rslora = False
    config.target_modules, config.inference_mode = names, True
    config.save_pretrained(out)


def scaled_factors(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return A (r, in) and B (out, r) of each layer of the plain LoRA in ``folder``, B times peft's scale."""
    config, weights, factors = read_adapter_config(folder), load_file(folder / WEIGHTS), {}
    for key in [key for key in weights if key.endswith(".lora_A.weight")]:
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        a, b = weights[key].float(), weights[key.replace(".lora_A.", ".lora_B.")].float()
        divisor = math.sqrt(len(a)) if config.get("use_rslora") else len(a)
        factors[name] = a, b * (alpha_of_layer(config, name) / divisor)
    return factors


# --- A faster LoRA layer ---


class FusedLoraLinear(Linear):
    """peft's LoRA layer with its forward and backward pass written by hand in ``LoraProduct``.

    The low-rank product is added in place to the output of the base layer, where peft allocates a tensor of the
    output's size for the product, the scaling and the sum each. Only the plain case is fused: one active, unmerged
    adapter, no dropout, and one dtype, or autocast on a CPU. Everything else is left to peft's own forward.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Apply the layer: (..., in) → (..., out)."""
        (name, *others), base = self.active_adapters or [None], self.base_layer
        plain = name in self.lora_A and name not in self.lora_variant and not others and not args and not kwargs
        autocast = torch.is_autocast_enabled(x.device.type)
        if not plain or self.disable_adapters or self.merged or (autocast and x.device.type != "cpu"):
            return super().forward(x, *args, **kwargs)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        one_dtype = x.dtype == base.weight.dtype == a.dtype
        if type(base) is not torch.nn.Linear or self.lora_bias[name] or not (one_dtype or autocast):
            return super().forward(x)
        if self.training and not isinstance(self.lora_dropout[name], torch.nn.Identity):
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        with torch.autocast("cpu", enabled=False):
            return LoraProduct.apply(x, base.weight, base.bias, a, b, self.scaling[name], dtype)  # type: ignore[no-untyped-call]


class LoraProduct(torch.autograd.Function):
    """``y = x Wᵀ + bias + scale · (x Aᵀ) Bᵀ`` with A (r, in), B (out, r), and frozen W (out, in) and bias (out,).

    Products and y are in ``dtype``, the gradients in the dtypes of what they belong to.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, w: torch.Tensor, bias: Any, a: Any, b: Any, scale: float, dtype: torch.dtype
    ) -> torch.Tensor:
        """Compute y (..., out) of x (..., in)."""
        ctx.dtypes = x.dtype, a.dtype, b.dtype
        flat = x.reshape(-1, x.shape[-1]).to(dtype)  # (N, in)
        w, a, b, bias = w.to(dtype), a.to(dtype), b.to(dtype), None if bias is None else bias.to(dtype)
        down = flat @ a.t()  # (N, r)
        y = torch.nn.functional.linear(flat, w, bias).addmm_(down, b.t(), alpha=scale)  # (N, out)
        ctx.save_for_backward(flat, down, w, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        """Return the gradients of x (..., in), A (r, in) and B (out, r) from that of y (..., out)."""
        flat, down, w, a, b = ctx.saved_tensors
        x_dtype, a_dtype, b_dtype = ctx.dtypes
        grad = grad.reshape(-1, grad.shape[-1]).to(w.dtype)  # (N, out)
        grad_down = (grad @ b).mul_(ctx.scale)  # (N, r)
        grad_x = (grad @ w).addmm_(grad_down, a).view(ctx.shape).to(x_dtype) if ctx.needs_input_grad[0] else None
        grad_a, grad_b = (grad_down.t() @ flat).to(a_dtype), (grad.t() @ down).mul_(ctx.scale).to(b_dtype)
        return grad_x, None, None, grad_a, grad_b, None, None


def use_fused_lora(model: torch.nn.Module) -> None:
    """Turn the plain LoRA layers of ``model`` into ``FusedLoraLinear``, in place."""
    for layer in model.modules():
        if type(layer) is Linear:
            layer.__class__ = FusedLoraLinear
