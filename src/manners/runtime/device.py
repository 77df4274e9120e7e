"""What ``auto`` means for device and precision on this machine."""

import hashlib
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig

from manners.errors import MannersError
from manners.runtime.atomic_io import atomic_write
from manners.runtime.paths import user_cache

BF16_WIDTH = 384  # of hidden states; below it, on a CPU, casting costs what faster products gain


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

    def autocast(self) -> torch.autocast:
        """What training computes in; measurements are made in it too."""
        return torch.autocast(self.kind, torch.bfloat16, enabled=self.precision == "bf16")


def resolve_device(accelerator: str, precision: str, num_threads: int | None, width: int = 0) -> Device:
    """Resolve ``auto`` for a model whose hidden states have ``width`` numbers.

    Raises MannersError for a device that this machine lacks, or cannot train on in fp16.
    """
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
        fast = {"cuda": torch.cuda.is_bf16_supported, "mps": lambda: False}
        fast["cpu"] = lambda: width >= BF16_WIDTH and bf16_is_faster()
        precision = "bf16" if fast[kind]() else "32"
    return Device(kind, precision)


def inference_device(hardware: DictConfig) -> Device:
    """The device of evaluate.py and chat.py. ``hardware.precision=auto`` is 32 bits there.

    What is measured or shown then does not depend on which number formats the machine is fast in.
    """
    precision = "32" if hardware.precision == "auto" else hardware.precision
    return resolve_device(hardware.accelerator, precision, hardware.num_threads)


def bf16_is_faster() -> bool:
    """Whether this CPU multiplies matrices in bf16 at least 1.3 times as fast as in 32 bits.

    With AMX or AVX512-bf16 it is 2 to 7 times as fast, without them some twenty times slower. Measured once for a kind
    of CPU and a version of torch, so that each run on a machine gets the same answer.
    """
    known = user_cache("bf16") / f"torch-{torch.__version__}-{hashlib.sha256(cpu_name().encode()).hexdigest()[:12]}"
    with suppress(OSError, ValueError):
        return float(known.read_text()) > 1.3
    seconds = [min(product_seconds(dtype) for _ in range(3)) for dtype in (torch.float32, torch.bfloat16)]
    with suppress(OSError):
        known.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(known) as file:
            file.write(f"{seconds[0] / seconds[1]:.2f}".encode())
    return seconds[0] / seconds[1] > 1.3


def product_seconds(dtype: torch.dtype) -> float:
    """The CPU time of one product of the size that a layer of a small model has."""
    x, w = torch.ones(128, 512, dtype=dtype), torch.ones(1024, 512, dtype=dtype)
    start = time.process_time()
    torch.nn.functional.linear(x, w)
    return time.process_time() - start


def cpu_name() -> str:
    """The model of the CPU, as far as the system tells."""
    with suppress(OSError):
        return next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return platform.processor()
