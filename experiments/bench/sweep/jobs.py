"""Four small jobs of ``train.py``, and the seconds of each besides training and evaluation.

    jobs.py --together    one process: train.py -m seed=1,2,3,4
    jobs.py               only one of them

A job is eight steps on the packaged corpus and an evaluation before and after, tracked in MLflow. The first job of a
process imports everything; ``later_cpu_s`` is the median of the jobs after it.
"""

import argparse
import functools
import itertools
import json
import os
import resource
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
JOBS = 4
SMALL = [
    "model=tiny", "dataset=strictbot_tiny", "dataset.max_rows=40", "method.max_steps=8", "method.eval_steps=4",
    "evaluation.test_prompts=8", "evaluation.max_new_tokens=24",
]  # fmt: skip
Seconds = tuple[float, float]  # CPU, wall


def clock() -> Seconds:
    return time.process_time(), time.perf_counter()


class OverheadClock:
    """CPU and wall seconds, less those of the functions that are excluded."""

    def __init__(self) -> None:
        self.started, self.excluded = (0.0, time.perf_counter()), (0.0, 0.0)
        self.laps: list[Seconds] = []

    def now(self) -> Seconds:
        return tuple(n - b - o for n, b, o in zip(clock(), self.started, self.excluded, strict=True))

    def exclude(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def called(*args: object, **kwargs: object) -> object:
            before = clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.excluded = tuple(o + n - b for o, n, b in zip(self.excluded, clock(), before, strict=True))

        return called

    def lap_after(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def called(*args: object, **kwargs: object) -> object:
            result = function(*args, **kwargs)
            self.laps.append(self.now())
            return result

        return called


def train(*arguments: str) -> dict[str, float]:
    """``train.py`` with the arguments, in this process."""
    overhead = OverheadClock()
    # These imports count for the first job, as in train.py.
    from manners.pipeline.stages import sft
    from manners.sweep import run as sweep

    sft.fit_module, sft.evaluate_on_test, sweep.launch_jobs = (
        overhead.exclude(sft.fit_module),
        overhead.exclude(sft.evaluate_on_test),
        overhead.lap_after(sweep.launch_jobs),
    )
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    cpu, wall = overhead.now()
    record = {"cpu_s": cpu, "wall_s": wall, "training_s": overhead.excluded[0], "later_cpu_s": cpu}
    if len(overhead.laps) > 1:
        record["later_cpu_s"] = statistics.median(b - a for (a, _), (b, _) in itertools.pairwise(overhead.laps))
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--together", action="store_true", help="all jobs in one process")
    parser.add_argument("--seed", type=int, default=0, help="of the first job")
    args = parser.parse_args()
    os.chdir(ROOT)
    seeds = ",".join(str(1 + JOBS * args.seed + job) for job in range(JOBS if args.together else 1))
    with tempfile.TemporaryDirectory() as scratch:
        record = train(*(["-m"] if args.together else []), *SMALL, f"seed={seeds}", f"output_dir={scratch}")
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    print(json.dumps({key: round(value, 3) for key, value in record.items()} | {"peak_rss_mb": peak}))


if __name__ == "__main__":
    main()
