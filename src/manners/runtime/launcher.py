"""Start one process per device for a distributed run, as ``torchrun --standalone`` does."""

import logging
import os
import sys
import uuid

from manners.errors import MannersError
from manners.runtime.paths import ROOT


def needs_launch(devices: int) -> bool:
    """Whether the run needs several processes, and no launcher has started them."""
    return devices > 1 and "WORLD_SIZE" not in os.environ


def launch_processes(overrides: list[str], devices: int) -> None:
    """Run the command in ``devices`` processes, and wait for them. Raises MannersError if they fail.

    Without torchrun's own traceback when a process fails; a signal lets the processes save a checkpoint first.
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
        signals_to_handle="SIGHUP",  # the others are handled in runtime.signals
        shutdown_timeout=600,
    )
    try:
        elastic_launch(how, sys.executable)(str(ROOT / "train.py"), *overrides)
    except ChildFailedError:
        raise MannersError(
            f"the run on {devices} devices has ended early; the reason is above. The same command resumes from its "
            "last checkpoint."
        ) from None
