"""Which device, and in which number format."""

from dataclasses import dataclass

import torch

from manners.errors import MannersError


@dataclass(frozen=True)
class Device:
    kind: str  # "cpu", "mps", "cuda"
    precision: str  # "32", "bf16", "fp16"

    @property
    def number_format(self) -> str:
        return "32 bits" if self.precision == "32" else self.precision

    @property
    def lightning_precision(self) -> str:
        """Weights stay in 32 bits; the forward pass is cast."""
        return {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[self.precision]


def resolve_device(accelerator: str, precision: str, num_threads: int | None) -> Device:
    """Settle what 'auto' means here. Raises MannersError for a device that this machine lacks."""
    if num_threads:
        torch.set_num_threads(num_threads)
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(k for k, there in here.items() if there) if accelerator == "auto" else accelerator
    if not here[kind]:
        raise MannersError(
            f"hardware.accelerator={kind}: torch {torch.__version__} finds no such device: hardware=auto."
        )
    if precision == "fp16" and kind != "cuda" and accelerator == "auto":
        precision = "32"  # what a recipe asks of a GPU, where there is none
    if precision == "fp16" and kind != "cuda":
        raise MannersError(f"fp16 training on {kind} loses small gradients: use hardware.precision=32 or bf16.")
    if precision == "auto":
        # Without instructions of its own for it, a CPU is some twenty times slower in bf16 than in 32 bits.
        precision = "bf16" if kind == "cuda" and torch.cuda.is_bf16_supported() else "32"
    return Device(kind, precision)
