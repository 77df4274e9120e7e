"""What ``auto`` means for device and precision on this machine."""

from dataclasses import dataclass

import torch

from manners.errors import MannersError


@dataclass(frozen=True)
class Device:
    """Where a run computes, and the number format of its forward passes."""

    kind: str  # "cpu", "mps", "cuda"
    precision: str  # "32", "bf16", "fp16"

    @property
    def number_format(self) -> str:
        """The precision as reports print it."""
        return "32 bits" if self.precision == "32" else self.precision

    @property
    def lightning_precision(self) -> str:
        """Lightning's name of the precision: weights stay in 32 bits, the forward pass is cast."""
        return {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[self.precision]


def resolve_device(accelerator: str, precision: str, num_threads: int | None) -> Device:
    """Resolve ``auto``. Raises MannersError for a device that this machine lacks, or cannot train on in fp16."""
    if num_threads:
        torch.set_num_threads(num_threads)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(k for k, present in available.items() if present) if accelerator == "auto" else accelerator
    if not available[kind]:
        raise MannersError(
            f"hardware.accelerator={kind}: torch {torch.__version__} finds no such device. Use hardware=auto."
        )
    if precision == "fp16" and kind != "cuda" and accelerator == "auto":
        precision = "32"  # the recipe is for a GPU, and there is none
    if precision == "fp16" and kind != "cuda":
        raise MannersError(f"fp16 training on {kind} loses small gradients: use hardware.precision=32 or bf16.")
    if precision == "auto":
        # A CPU without bf16 instructions is some twenty times slower in bf16 than in 32 bits.
        precision = "bf16" if kind == "cuda" and torch.cuda.is_bf16_supported() else "32"
    return Device(kind, precision)
