"""What a run costs: seconds, tokens, memory. Kept in the run state, so that the parts of a resumed run add up."""

import sys
import time

import psutil
import torch

from manners.runtime.run_dir import RunDir


def start_clock(directory: RunDir) -> None:
    """Start counting. A part of the run that was killed counts until the last metric that it wrote.

    The peak of the process memory is reset where the system allows it: a chain of runs is one process.
    """
    seconds, since = directory.state.seconds, directory.state.since
    metrics = directory.path / "metrics.jsonl"
    if since is not None and metrics.exists():
        seconds += max(0.0, metrics.stat().st_mtime - since)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # Linux: proc(5), "reset the peak resident set size"
    except OSError:
        pass  # elsewhere the peak is that since the process began
    directory.update_state(seconds=seconds, since=time.time())


def cost_metrics(directory: RunDir, device: str) -> dict[str, float]:
    """``cost/seconds``, ``cost/peak_memory_gb`` (10⁹ bytes, of the GPU or the process) and ``cost/tokens``."""
    state = directory.state
    seconds = state.seconds + (time.time() - state.since if state.since else 0.0)
    directory.update_state(seconds=seconds, since=None)
    metrics = {"cost/seconds": seconds, "cost/peak_memory_gb": peak_memory(device) / 1e9}
    return metrics | ({"cost/tokens": float(state.tokens)} if state.tokens is not None else {})


def peak_memory(device: str) -> float:
    """The most memory held at once since ``start_clock``, in bytes."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset)
    import resource  # which Windows lacks

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
