"""What a training run keeps in memory, part by part: ``python -m manners.memory study=human_user``.

Counted from the shapes of the architecture, with no weights loaded. Weights, adapter, gradients and optimizer are
exact; activations follow what a Llama-like layer saves for its backward pass (Korthikanti et al. 2022, arXiv
2205.05198, for the way of counting), of the longest batch that the config allows.
"""

import math
import sys
from typing import Any

import hydra
import torch
from hydra.core.plugins import Plugins
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from manners import checks, cli, config
from manners.errors import MannersError
from manners.models import base

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes a weight: 4 bits, a byte for each 64, 4 bytes for each 256 of those
CONTEXT = 0.5e9  # bytes that CUDA and its kernels take before anything is loaded


def parts(cfg: DictConfig, architecture: Any) -> dict[str, float]:
    """Bytes of each part, largest batch, on a GPU. SFT of decoders only."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)
    a, m, bits16 = cfg.adapter, cfg.method, cfg.hardware.precision in ("bf16", "fp16")
    head = model.get_output_embeddings()
    linear = {n: x for n, x in model.named_modules() if is_linear(x) and x is not head}
    inner = sum(x.weight.numel() for x in linear.values())
    total = sum(p.numel() for p in model.parameters())
    if a.quantization == "nf4":
        weights = {
            "weights in 4 bits": inner * NF4,
            "embeddings, head and norms": (total - inner) * (2 if bits16 else 4),
        }
    else:
        weights = {"weights": 4.0 * total}
    trained = total
    if a.kind != "none":
        adapted = linear if a.target_modules == "all-linear" else {
            n: x for n, x in linear.items() if n.rpartition(".")[2] in a.target_modules
        }  # fmt: skip
        trained = sum(a.r * sum(x.weight.shape) for x in adapted.values())
        weights["adapter"] = 4.0 * trained
    state = 2 if cfg.hardware.optim == "paged_adamw_8bit" else 8  # bytes of both moments
    return weights | {
        "gradients": 4.0 * trained,
        "optimizer": float(state * trained),
        "activations": activations(architecture.get_text_config(), m, 2 if bits16 else 4, a.kind != "none"),
        "logits of the trained tokens, at most": logits(architecture.get_text_config(), m, bits16),
        "CUDA itself, about": CONTEXT,
    }


def is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's


def activations(shape: Any, method: DictConfig, width: int, adapted: bool) -> float:
    """Bytes saved for the backward pass: with checkpointing each layer's input, and one layer's insides at a time."""
    tokens = method.per_device_train_batch_size * method.max_length
    hidden, layers = shape.hidden_size, shape.num_hidden_layers
    inner = getattr(shape, "intermediate_size", None) or 4 * hidden
    heads = shape.num_attention_heads
    key_value = 2 * hidden * (getattr(shape, "num_key_value_heads", None) or heads) / heads
    layer = width * (6 * hidden + key_value + 4 * inner)  # norms, q k v o, gate, up, their product
    layer += 4 * (6 * hidden + inner) if adapted else 0  # the adapter's inputs, cast to 32 bits
    checkpoints = width * hidden * layers if method.gradient_checkpointing else 0
    return float(tokens * (checkpoints + layer * (1 if method.gradient_checkpointing else layers)))


def logits(shape: Any, method: DictConfig, bits16: bool) -> float:
    """In 32 bits, with their log-softmax and gradient, and once each in 16 where the head is. Of all positions."""
    slots = method.per_device_train_batch_size * method.max_length
    return float((16 if bits16 else 12) * slots * shape.vocab_size)


def main(overrides: list[str]) -> None:
    config.register()
    Plugins.instance().register(cli.Recipes)
    with hydra.initialize_config_dir(str(cli.CONF), version_base="1.3"):
        cfg = cli.compose("train", overrides)
        checks.check(cfg)
    if cfg.method.name != "sft" or not cfg.model.decoder:
        raise MannersError("the estimate is of SFT: method=sft.")
    found = parts(cfg, base.architecture(cfg.model.name, cfg.model.revision))
    table = Table("part", "GB", title=f"{cfg.model.name}, {cfg.adapter.kind}", header_style="bold", box=None)
    for name, size in found.items():
        table.add_row(name, f"{size / 1e9:.2f}")
    table.add_row("[bold]together[/]", f"[bold]{math.fsum(found.values()) / 1e9:.2f}[/]")
    Console().print(table)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MannersError as error:
        sys.exit(f"error: {error}")
