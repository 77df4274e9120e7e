"""One model on several devices: what cannot be is refused, and the processes are started.

Each process runs the same command. ``torchrun`` says to each which one it is; without it the command starts it itself.
"""

import logging
import os
import sys
import uuid

from omegaconf import DictConfig

from manners.errors import MannersError
from manners.runtime.paths import ROOT


def check_processes(cfg: DictConfig) -> None:
    """Refuse what cannot be shared out. Nothing heavy is imported, so devices are not counted yet."""
    h, name = cfg.hardware, cfg.method.name
    if h.devices < 1:
        raise MannersError(f"hardware.devices={h.devices} must be at least 1.", "hardware.devices")
    if h.devices > 1 and cfg.method.sample_type == "prompt":
        raise MannersError(
            f"hardware.devices={h.devices} is for SFT and reward models. method={name} is started by a launcher: "
            f"torchrun --nproc-per-node {h.devices} train.py method={name} (on GPUs also accelerate launch), with "
            "hardware.devices=1."
        )
    if h.devices > 1 and name not in ("sft", "reward"):
        raise MannersError(f"method={name} trains in one process: hardware.devices=1.")
    if h.strategy == "fsdp":
        check_fsdp(cfg)


def check_fsdp(cfg: DictConfig) -> None:
    h = cfg.hardware
    if h.devices == 1:
        raise MannersError(
            "FSDP shares a model out among devices: set hardware.devices to 2 or more, or hardware=auto."
        )
    if cfg.adapter.quantization != "none":
        raise MannersError(
            f"FSDP cannot share out weights in {cfg.adapter.quantization} (lightning#20855): hardware=ddp, which gives "
            "each device all of them, or adapter=lora."
        )
    if h.precision == "fp16":
        raise MannersError("FSDP does not scale its loss for fp16: hardware.precision=bf16 or 32.")
    if cfg.method.optim != "adamw_torch_fused":
        raise MannersError("bitsandbytes' optimizer cannot read the shares that FSDP makes: method.optim=adamw_torch_fused.")


def needs_launch(devices: int) -> bool:
    """Whether nobody has started the processes yet."""
    return devices > 1 and "WORLD_SIZE" not in os.environ


def launch_processes(overrides: list[str], devices: int) -> None:
    """Run the command in ``devices`` processes, and wait for them. Raises MannersError if they fail.

    It does what ``torchrun --standalone`` does, less its account of its own inside when a process fails. Told to stop,
    it has the processes save themselves first.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    how = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle="SIGHUP",  # the others are ours: see manners.runtime.signals
        shutdown_timeout=600,
    )
    try:
        elastic_launch(how, sys.executable)(str(ROOT / "train.py"), *overrides)
    except ChildFailedError:
        raise MannersError(
            f"the run on {devices} devices has ended early; the reason stands above. The same command goes on from its "
            "last checkpoint."
        ) from None
