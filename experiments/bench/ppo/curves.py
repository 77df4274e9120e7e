"""Reward curves of both sides, each at its best learning rate, over several seeds.

    make bench-curves                       three seeds, and three learning rates with the first
    make bench-curves ARGS="--seeds 5"

Writes curves.json, curves.png and their section of README.md in this folder.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import learning
from prepare import HERE, MODEL, PEER_PYTHON, PROMPTS, ROOT, prepare
from rich.progress import track

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where ``sides`` is
import sides

# The slower side first, for an even load. The critics have their own learning rates: our head the package's default,
# TRL's critic one that suits a full small network.
SIDES = {"peer": ["--value-lr", "3e-4"], "ours": []}
PYTHONS = {"peer": PEER_PYTHON, "ours": os.path.relpath(sys.executable, ROOT)}
Job = tuple[str, str, int]  # side, learning rate, seed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=["3e-4", "1e-3", "2e-3"], help="learning rates to choose from")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--torch-index", default="", help="package index of torch for the peer's environment")
    return parser.parse_args()


def curves(rates: list[str], seeds: int, iterations: int, first: int) -> dict:
    """Try each learning rate with the first seed, and run the best one of each side with the other seeds."""
    runs = run_jobs([(side, rate, first) for side in SIDES for rate in rates], iterations)
    best = {side: max((r for r in runs if r["role"] == side), key=learning.objective)["rate"] for side in SIDES}
    others = range(first + 1, first + seeds)
    runs += run_jobs([(side, best[side], seed) for side in SIDES for seed in others], iterations)
    return {"rates": rates, "best": best, "runs": runs}


def run_jobs(jobs: list[Job], iterations: int) -> list[dict]:
    """Run one job per core; time is not measured here."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(track(pool.map(lambda job: run_job(job, iterations), jobs), "training", total=len(jobs)))


def run_job(job: Job, iterations: int) -> dict:
    """The JSON that the side prints, with its command. Its stderr goes to a log."""
    side, rate, seed = job
    task = ["--model", MODEL, "--prompts", str(PROMPTS), "--iterations", str(iterations), "--seed", str(seed)]
    command = [PYTHONS[side], str(HERE / f"{side}.py"), *task, "--lora", "--lr", rate, *SIDES[side]]
    log = (ROOT / PROMPTS).with_name(f"{side}.log")
    with log.open("a", encoding="utf-8") as errors:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    if done.returncode:
        sys.exit(f"this command failed (see {os.path.relpath(log, ROOT)}): {shlex.join(command)}")
    return {"role": side, "rate": rate, "seed": seed, "command": shlex.join(command)} | json.loads(done.stdout)


def main() -> None:
    args = arguments()
    prepare(args.torch_index)
    environment = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), **sides.machine()}
    environment["versions"] = {side: sides.versions(python) for side, python in PYTHONS.items()}
    results = environment | curves(args.rates, args.seeds, args.iterations, args.seed)
    (ROOT / HERE / "curves.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    learning.draw(results, ROOT / HERE / "curves.png")
    learning.update_readme(ROOT / HERE / "README.md", learning.table(results))
    print(learning.table(results))


if __name__ == "__main__":
    main()
