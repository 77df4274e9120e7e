"""Four small jobs by ``train.py``, and what each takes beyond its training and its answers before and after.

    jobs.py --together    one process: train.py -m seed=1,2,3,4
    jobs.py               a process for each of them

A job is eight steps on the packaged corpus and a few answers before and after, tracked in MLflow. The first job of a
process pays for its imports; ``later`` is what each job after it takes.
"""

import argparse
import functools
import json
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
JOBS = 4
SMALL = [
    "dataset.max_rows=40", "method.max_steps=8", "method.eval_steps=4", "evaluation.test_prompts=8",
    "evaluation.max_new_tokens=24",
]  # fmt: skip
Seconds = tuple[float, float]  # CPU, wall


def clock() -> Seconds:
    return time.process_time(), time.perf_counter()


class Beyond:
    """The clock less what ``apart`` is told to leave out."""

    def __init__(self) -> None:
        self.began, self.left_out = (0.0, time.perf_counter()), (0.0, 0.0)
        self.laps: list[Seconds] = []

    def now(self) -> Seconds:
        return tuple(n - b - o for n, b, o in zip(clock(), self.began, self.left_out, strict=True))

    def apart(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def called(*args: object, **kwargs: object) -> object:
            before = clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.left_out = tuple(o + n - b for o, n, b in zip(self.left_out, clock(), before, strict=True))

        return called

    def lapped(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def called(*args: object, **kwargs: object) -> object:
            found = function(*args, **kwargs)
            self.laps.append(self.now())
            return found

        return called


def train(*arguments: str) -> dict[str, float]:
    """``train.py`` with the arguments, in this process."""
    beyond = Beyond()
    # The imports are the same here as later, and count as the first job's.
    from manners.stages import sft
    from manners.sweep import run as sweep

    sft.learn, sft.answer, sweep.launch = beyond.apart(sft.learn), beyond.apart(sft.answer), beyond.lapped(sweep.launch)
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    cpu, wall = beyond.now()
    found = {"cpu_s": cpu, "wall_s": wall, "training_s": beyond.left_out[0]}
    if len(beyond.laps) > 1:
        (first, _), (last, _) = beyond.laps[0], beyond.laps[-1]
        found["later_cpu_s"] = (last - first) / (len(beyond.laps) - 1)
    return found


def one_process_each(command: list[str]) -> dict[str, float]:
    each = []
    for job in range(JOBS):
        done = subprocess.run([*command, "--job", str(job)], stdout=subprocess.PIPE, check=True, text=True)
        each.append(json.loads(done.stdout.strip().rpartition("\n")[2]))
    return {key: sum(one[key] for one in each) for key in each[0]} | {"later_cpu_s": each[-1]["cpu_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--together", action="store_true", help="one process for all jobs")
    parser.add_argument("--seed", type=int, default=0, help="of the first job")
    parser.add_argument("--job", type=int, help="one job alone, by its number")
    parser.add_argument("--out", help="its output_dir")
    args = parser.parse_args()
    os.chdir(ROOT)
    seeds = [str(1 + JOBS * args.seed + job) for job in range(JOBS)]
    with tempfile.TemporaryDirectory() as scratch:
        if args.together:
            found = train("-m", *SMALL, f"seed={','.join(seeds)}", f"output_dir={scratch}")
        elif args.job is not None:
            found = train(*SMALL, f"seed={seeds[args.job]}", f"output_dir={args.out}")
        else:
            found = one_process_each([sys.executable, __file__, "--seed", str(args.seed), "--out", scratch])
    who = resource.RUSAGE_SELF if args.together or args.job is not None else resource.RUSAGE_CHILDREN
    peak = round(resource.getrusage(who).ru_maxrss / 2**10)
    print(json.dumps({key: round(value, 3) for key, value in found.items()} | {"peak_rss_mb": peak}))


if __name__ == "__main__":
    main()
