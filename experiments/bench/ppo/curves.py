"""How the reward grows on both sides: each at the learning rate that suits it best, over several seeds.

    make bench-curves                       three seeds, and three learning rates with the first
    make bench-curves ARGS="--seeds 5"

Writes curves.json, curves.png and their part of README.md, beside this file.
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

# The slower one first, so that no core waits at the end. The critics have rates of their own: our head the package's
# default, TRL's one that suits a whole small network.
SIDES = {"peer": ["--value-lr", "3e-4"], "ours": []}
PYTHONS = {"peer": PEER_PYTHON, "ours": os.path.relpath(sys.executable, ROOT)}
Job = tuple[str, str, int]  # side, learning rate, seed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=["3e-4", "1e-3", "2e-3"], help="learning rates to choose from")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--torch-index", default="", help="where pip finds torch for the peer's environment")
    return parser.parse_args()


def curves(rates: list[str], seeds: int, iterations: int, first: int) -> dict:
    """Of several rates, each is tried with the first seed; the best one of a side runs with the other seeds, too."""
    runs = together([(side, rate, first) for side in SIDES for rate in rates], iterations)
    best = {side: max((r for r in runs if r["role"] == side), key=learning.goal)["rate"] for side in SIDES}
    others = range(first + 1, first + seeds)
    runs += together([(side, best[side], seed) for side in SIDES for seed in others], iterations)
    return {"rates": rates, "best": best, "runs": runs}


def together(jobs: list[Job], iterations: int) -> list[dict]:
    """One on each core: no time is taken here."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(track(pool.map(lambda job: one(job, iterations), jobs), "training", total=len(jobs)))


def one(job: Job, iterations: int) -> dict:
    """What a side prints, with its command. What else it says goes to a log of the side's own."""
    side, rate, seed = job
    task = ["--model", MODEL, "--prompts", str(PROMPTS), "--iterations", str(iterations), "--seed", str(seed)]
    command = [PYTHONS[side], str(HERE / f"{side}.py"), *task, "--lora", "--lr", rate, *SIDES[side]]
    log = (ROOT / PROMPTS).with_name(f"{side}.log")
    with log.open("a", encoding="utf-8") as errors:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    if done.returncode:
        sys.exit(f"this failed, and {os.path.relpath(log, ROOT)} says why: {shlex.join(command)}")
    return {"role": side, "rate": rate, "seed": seed, "command": shlex.join(command)} | json.loads(done.stdout)


def main() -> None:
    args = arguments()
    prepare(args.torch_index)
    about = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), **sides.machine()}
    about["versions"] = {side: sides.versions(python) for side, python in PYTHONS.items()}
    found = about | curves(args.rates, args.seeds, args.iterations, args.seed)
    (ROOT / HERE / "curves.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    learning.draw(found, ROOT / HERE / "curves.png")
    learning.fill(ROOT / HERE / "README.md", learning.told(found))
    print(learning.told(found))


if __name__ == "__main__":
    main()
