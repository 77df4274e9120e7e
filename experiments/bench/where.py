"""Where the time of a side goes, and how near its matrix products are to the processor's peak.

    .venv/bin/python experiments/bench/where.py sft/ours.py --rows R --model M --lora

Runs a script of a line with a ``task.Clock`` (sft, reward, our side of ppo) twice: once unchanged, for the seconds
between the clock's start and stop, and once with every PyTorch operation timed, for their shares. What the sum of the
operations is short of the first run's seconds is the overhead of Python and autograd. (PyTorch's profiler does not help
here: its records take so much memory that large operations become many times slower.) *Floor* is the time that the
matrix products would take at the rate of one large product on one thread. Run it on an idle machine.
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

KINDS = {  # the first kind with a part that occurs in the name of the operation
    "attention": ("scaled_dot_product",),
    "optimizer": ("adam", "_foreach", "linalg_vector_norm"),
    "matrix products": ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"),
    "copies and indexing": ("copy", "clone", "cat", "index", "gather", "embedding", "slice", "fill", "zero"),
}


class OperationTimer(TorchDispatchMode):
    """Times every operation, in the backward pass too, and counts the FLOP of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.flop = 0  # of matrix products

    def __torch_dispatch__(self, func: Any, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        operation_kind = kind(str(func))
        self.seconds[operation_kind] += time.perf_counter() - start
        if operation_kind == "matrix products":
            self.flop += 2 * out.numel() * args[-1].shape[-2]  # addmm and baddbmm have the added tensor first
        return out


class Clock:
    """Measures from ``start`` to ``stop``; the last pair counts, earlier ones are warm-up."""

    time_operations = False
    last: "Clock"

    def start(self) -> None:
        self.timer = OperationTimer()
        if Clock.time_operations:
            self.timer.__enter__()
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self.cpu_s, self.wall_s = time.process_time() - self.cpu, time.perf_counter() - self.wall
        if Clock.time_operations:
            self.timer.__exit__(None, None, None)
        Clock.last = self


def kind(operation: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(p in operation for p in parts)), "other arithmetic")


def peak_flops(size: int = 1024) -> float:
    """FLOP per second of one large matrix product, the median of twelve."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(12):
        start = time.process_time()
        a @ b
        seconds.append(time.process_time() - start)
    return 2 * size**3 / statistics.median(seconds)


def run(script: Path, time_operations: bool) -> Clock:
    Clock.time_operations = time_operations
    runpy.run_path(str(script), run_name="__main__")
    return Clock.last


def main() -> None:
    script = Path(__file__).parent / sys.argv[1]
    sys.path.insert(0, str(script.resolve().parent))
    import task  # of the script

    task.Clock = Clock
    sys.argv = [str(script), *sys.argv[2:]]
    untimed, timer, peak = run(script, False).cpu_s, run(script, True).timer, peak_flops()
    total = sum(timer.seconds.values())
    print("\n| operations | CPU, s | share |\n|---|---:|---:|")
    for name, seconds in sorted(timer.seconds.items(), key=lambda item: -item[1]):
        print(f"| {name} | {seconds:.2f} | {seconds / total:.0%} |")
    products, floor = timer.seconds["matrix products"], timer.flop / peak
    print(
        f"\nFloor: {timer.flop / 1e9:,.0f} GFLOP of matrix products at {peak / 1e9:.0f} GFLOP/s take {floor:.2f} s; "
        f"they took {products:.2f} s of {total:.2f} s. Untimed, all took {untimed:.2f} s. torch {torch.__version__}."
    )


if __name__ == "__main__":
    main()
