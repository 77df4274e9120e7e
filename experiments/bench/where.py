"""Where the time of a side goes, and how near it is to what the processor could do.

    .venv/bin/python experiments/bench/where.py sft/ours.py --rows R --model M --lora

Runs a script of the lines that share a ``task.Clock`` (sft, reward, our side of ppo) twice: once as it is, for the
seconds between the clock's start and stop, and once with each of PyTorch's operations timed, for their shares. By how
much their sum stays below the first run's seconds is Python's and autograd's part. (PyTorch's profiler is of no use
here: its own records take so much memory that large operations become many times slower.) *Floor* is the time that the
matrix products would take at the rate which one large product reaches here on one thread. Let the machine be idle.
"""

import runpy
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {  # the first that an operation's name holds
    "attention": ("scaled_dot_product",),
    "optimizer": ("adam", "_foreach", "linalg_vector_norm"),
    "matrix products": ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"),
    "copies and indexing": ("copy", "clone", "cat", "index", "gather", "embedding", "slice", "fill", "zero"),
}


class Watch(TorchDispatchMode):
    """Times every operation, in the backward pass too, and counts what the matrix products compute."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.products = 0  # floating-point operations

    def __torch_dispatch__(self, func: Any, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        began = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        took = kind(str(func))
        self.seconds[took] += time.perf_counter() - began
        if took == "matrix products":
            self.products += 2 * out.numel() * args[-1].shape[-2]  # whatever is added comes first
        return out


class Clock:
    """From each ``start`` to its ``stop``; the last one counts, those before are warm-up."""

    watching = False
    last: "Clock"

    def start(self) -> None:
        self.watch = Watch()
        if Clock.watching:
            self.watch.__enter__()
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self.cpu_s, self.wall_s = time.process_time() - self.cpu, time.perf_counter() - self.wall
        if Clock.watching:
            self.watch.__exit__(None, None, None)
        Clock.last = self


def kind(operation: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(p in operation for p in parts)), "other arithmetic")


def rate(size: int = 1024) -> float:
    """Floating-point operations a second of one large product, the median of some."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(12):
        began = time.process_time()
        a @ b
        seconds.append(time.process_time() - began)
    return 2 * size**3 / statistics.median(seconds)


def run(script: Path, watching: bool) -> Clock:
    Clock.watching = watching
    runpy.run_path(str(script), run_name="__main__")
    return Clock.last


def main() -> None:
    script = Path(__file__).parent / sys.argv[1]
    sys.path.insert(0, str(script.resolve().parent))
    import task  # the script's own

    task.Clock = Clock
    sys.argv = [str(script), *sys.argv[2:]]
    whole, watch, peak = run(script, watching=False).cpu_s, run(script, watching=True).watch, rate()
    together = sum(watch.seconds.values())
    print("\n| what | s of CPU | share |\n|---|---:|---:|")
    for what, took in sorted(watch.seconds.items(), key=lambda item: -item[1]):
        print(f"| {what} | {took:.2f} | {took / together:.0%} |")
    products, floor = watch.seconds["matrix products"], watch.products / peak
    print(
        f"\nFloor: {watch.products / 1e9:,.0f} GFLOP of matrix products at {peak / 1e9:.0f} GFLOP/s are {floor:.2f} s; "
        f"they took {products:.2f} s of {together:.2f} s. Untimed, all took {whole:.2f} s. torch {torch.__version__}."
    )


if __name__ == "__main__":
    main()
