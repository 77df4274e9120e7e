"""Where the time of a side goes, and how near it is to what the processor could do.

    .venv/bin/python experiments/bench/where.py sft/ours.py --rows R --model M --lora

Runs the script, of the lines that share a ``task.Clock`` (sft, reward, our side of ppo), with PyTorch's profiler
between the clock's start and stop, and prints a table in Markdown. *Floor* is the time that the operations of the
matrix products would take at the rate which one large product reaches here on one thread. The profiler itself costs
time, most where there are many small operations: read the shares, not the seconds. Its clock is the wall: let the
machine be idle.
"""

import runpy
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = {  # the first that an operation's name holds
    "attention": ("scaled_dot_product",),
    "optimizer": ("adam", "_foreach", "linalg_vector_norm"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn", "aten::linear"),
    "copies and indexing": ("copy_", "cat", "index", "gather", "embedding", "select", "slice", "contiguous", "fill_"),
    "other arithmetic": ("aten::",),
}


class Clock:
    """Profiles from each ``start`` to its ``stop``; the last one counts, those before are warm-up."""

    last: "Clock"

    def start(self) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU], with_flops=True)
        self.profiler.start()
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self.cpu_s, self.wall_s = time.process_time() - self.cpu, time.perf_counter() - self.wall
        self.profiler.stop()
        Clock.last = self


def kind(operation: str) -> str:
    name = operation.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "")


def rate(size: int = 1024) -> float:
    """Floating-point operations a second of one large product, the median of some."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(12):
        began = time.process_time()
        a @ b
        seconds.append(time.process_time() - began)
    return 2 * size**3 / statistics.median(seconds)


def main() -> None:
    script = Path(__file__).parent / sys.argv[1]
    sys.path.insert(0, str(script.resolve().parent))
    import task  # the script's own

    task.Clock = Clock
    sys.argv = [str(script), *sys.argv[2:]]
    runpy.run_path(str(script), run_name="__main__")
    clock, seconds, operations = Clock.last, defaultdict(float), 0
    for event in clock.profiler.key_averages():
        if found := kind(event.key):
            seconds[found] += event.self_cpu_time_total / 1e6
        operations += event.flops if kind(event.key) == "matrix products" else 0
    peak = rate()
    print("\n| what | s of CPU | share |\n|---|---:|---:|")
    rest = clock.cpu_s - sum(seconds.values())
    for what, took in [*sorted(seconds.items(), key=lambda item: -item[1]), ("Python, autograd, Lightning", rest)]:
        print(f"| {what} | {took:.2f} | {took / clock.cpu_s:.0%} |")
    products, floor = seconds["matrix products"], operations / peak
    print(
        f"\nFloor: {operations / 1e9:,.0f} GFLOP of matrix products at {peak / 1e9:.0f} GFLOP/s are {floor:.2f} s; "
        f"they took {products:.2f} s of {clock.cpu_s:.2f} s. torch {torch.__version__}, one thread."
    )


if __name__ == "__main__":
    main()
