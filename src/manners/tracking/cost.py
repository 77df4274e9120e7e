"""What a run costs: seconds, tokens, memory. Kept in ``run.json``, so that a run that goes on after a kill adds up."""

import resource
import sys
import time

import torch

from manners.runtime.run_dir import RunDir


def start_clock(folder: RunDir) -> None:
    """A part of the run begins. The part before it, if it did not finish, lasted until the last metric that it wrote.

    The memory's peak begins anew, where the system can be asked for that: a chain of runs is one process.
    """
    spent, since = folder.state.get("seconds", 0.0), folder.state.get("since")
    written = folder.path / "metrics.jsonl"
    if since is not None and written.exists():
        spent += max(0.0, written.stat().st_mtime - since)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # Linux: proc(5), "reset the peak resident set size"
    except OSError:
        pass  # elsewhere the peak is that since the process began
    folder.update_state(seconds=spent, since=time.time())


def cost_metrics(folder: RunDir, device: str) -> dict[str, float]:
    """The run's metrics at its end, when the clock stops. Memory is in 10⁹ bytes, of the GPU or of the process."""
    state = folder.state
    running = time.time() - state["since"] if state["since"] else 0.0
    found = {
        "cost/seconds": state["seconds"] + running,
        "cost/peak_memory_gb": peak_memory(device) / 1e9,
    }
    folder.update_state(seconds=found["cost/seconds"], since=None)
    return found | ({"cost/tokens": float(state["tokens"])} if "tokens" in state else {})


def peak_memory(device: str) -> float:
    """The most memory held at once since ``start_clock``, in bytes."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
