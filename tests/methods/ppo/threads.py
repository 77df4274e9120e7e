"""Two threads in place of two processes: each has its own rows, and what they sum is summed between them."""

import threading
from collections.abc import Callable
from typing import Any

import torch

Reduce = Callable[[torch.Tensor], torch.Tensor]


def run_in_threads(work: Callable[[int, Reduce], Any]) -> list[Any]:
    """What ``work(rank, reduce)`` returns in each of two threads; ``reduce`` sums a tensor over both."""
    barrier, tensors, results = threading.Barrier(2, timeout=20), [None, None], [None, None]

    def reduce_in(rank: int) -> Reduce:
        def reduce(tensor: torch.Tensor) -> torch.Tensor:
            tensors[rank] = tensor
            barrier.wait()
            total = tensors[0] + tensors[1]
            barrier.wait()
            return total

        return reduce

    def run(rank: int) -> None:
        results[rank] = work(rank, reduce_in(rank))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
