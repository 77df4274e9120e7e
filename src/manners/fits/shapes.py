"""The networks of a run as shapes alone: with its adapter, its 4-bit base and its optimizer."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from manners.fits.ledger import Ledger
from manners.models import loading, lora
from manners.pipeline.stages.context import loading_kwargs
from manners.runtime.device import Device

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes a weight: 4 bits, a byte for each 64, 4 bytes for each 256 of those
WEIGHTS, ADAPTER, REFERENCE, REWARD = "weights", "adapter and new heads", "frozen reference", "reward model"
HEADS = ("score", "classifier")  # of reward models: trained, so they stay whole
CLASSIFIER = AutoModelForSequenceClassification


def language_model(cfg: DictConfig, device: Device, vocabulary: int, adapted: bool = True) -> Any:
    """The causal model of ``cfg``, of at least ``vocabulary`` tokens, on the meta device."""
    return network(cfg, device, AutoModelForCausalLM, vocabulary, "CAUSAL_LM" if adapted else "")


def scorer(cfg: DictConfig, device: Device, pad: int | None, adapted: bool = True) -> Any:
    """A reward model: the base of ``cfg`` with one number at its end."""
    found = network(cfg, device, CLASSIFIER, 0, "SEQ_CLS" if adapted else "")
    found.config.pad_token_id = pad
    return found


def network(cfg: DictConfig, device: Device, auto: Any, vocabulary: int, task_type: str) -> Any:
    """On the meta device; without a ``task_type`` no adapter is put on it."""
    shape, a = loading.load_config(cfg.model.name, cfg.model.revision), cfg.adapter
    shape.vocab_size = max(shape.vocab_size, vocabulary)  # tokens that were added
    if auto is CLASSIFIER:
        shape.num_labels = 1
    settings = loading_kwargs(cfg, device)
    with torch.device("meta"):
        made = auto.from_config(shape, attn_implementation=cfg.model.attn_implementation, dtype=settings["dtype"])
        if a.quantization != "none":
            pack_linears(made)
        if not task_type:
            return made
        tokens = range(len(cfg.model.added_tokens))
        return lora.prepare_for_training(
            made, a.kind, a.r, a.lora_alpha, a.lora_dropout, a.target_modules, cfg.method.gradient_checkpointing,
            task_type, tokens,
        )  # fmt: skip


def imagine(model: torch.nn.Module, ledger: Ledger, part: str = "") -> None:
    """Give the shapes tensors that the ledger counts, each under its part, or all under ``part``."""
    memo: dict[int, torch.Tensor] = {}  # tied weights are one
    named = {id(p): name for name, p in model.named_parameters()}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, old in held.items():
                if old is not None and id(old) not in memo:
                    with ledger.booking(part or part_of(named.get(id(old), ""))):
                        new = torch.empty(old.shape, dtype=old.dtype)
                    is_parameter = isinstance(old, torch.nn.Parameter)
                    memo[id(old)] = torch.nn.Parameter(new, old.requires_grad) if is_parameter else new
                if old is not None:
                    held[key] = memo[id(old)]  # type: ignore[assignment]


def part_of(name: str) -> str:
    if name.startswith("reference."):
        return REFERENCE
    own = ("lora_", "value_head", "modules_to_save", "trainable_tokens_")
    return ADAPTER if any(word in name for word in own) else WEIGHTS


class Packed(torch.nn.Linear):
    """A linear layer in 4 bits: its weight is unpacked for each pass, forward and backward, and not kept."""

    def __init__(self, inside: int, outside: int, bias: bool, dtype: torch.dtype):
        super().__init__(inside, outside, bias, dtype=dtype)
        halves = math.ceil(inside * outside * NF4 / 2)  # as 16-bit floats, for the ledger imagines floats alone
        self.unpacked = self.weight.shape, dtype
        self.weight = torch.nn.Parameter(torch.empty(halves, dtype=torch.float16), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape, dtype = self.unpacked
        return Unpacking.apply(x.to(dtype), shape, dtype) + (0 if self.bias is None else self.bias)


class Unpacking(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        ctx.unpacked = shape, dtype
        return F.linear(x, torch.empty(shape, dtype=dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        shape, dtype = ctx.unpacked
        return grad @ torch.empty(shape, dtype=dtype), None, None


def pack_linears(model: Any) -> None:
    """As bitsandbytes does: all linear layers but the head."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (torch.nn.Linear, Conv1D)) and child is not head and name not in HEADS:
                turned = child.weight.shape[::-1] if isinstance(child, Conv1D) else child.weight.shape  # (out, in)
                setattr(parent, name, Packed(turned[1], turned[0], child.bias is not None, child.weight.dtype))
    model.config.quantization_config = {"load_in_4bit": True}


def eight_bits(optimizer: torch.optim.Optimizer, params: Sequence[torch.Tensor]) -> None:
    """Make of AdamW what bitsandbytes' is: two moments of a byte for each weight, and a scale for each 256 of them."""
    state = [torch.empty(math.ceil(p.numel() * (1 + 4 / 256)), dtype=torch.float16) for p in params]
    optimizer.step = lambda: state  # type: ignore[method-assign,assignment,return-value]
