"""The PPO benchmark: our PPO against TRL 1.12's on the same task, in processes that take turns.

    make bench-ppo                      time and memory (about ten minutes on two cores)
    make bench-ppo ARGS="--curves"      how the reward grows on both sides

Both write results.json and their part of README.md, beside this file.
"""

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import report
import sides
from curves import curves

RESULTS = sides.HERE / "results.json"
# What is trained: the options of our side, and those of the peer.
CASES = {
    "lora": (["--lora"], ["--lora"]),
    "full": (["--full"], ["--full"]),
    "fixed": (["--lora", "--no-stop", "--new-tokens", "16"], ["--lora", "--no-stop", "--new-tokens", "16"]),
    "adapter": (["--lora", "--critic", "adapter"], ["--lora"]),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our PPO against TRL 1.12's, by turns.")
    parser.add_argument("--torch-index", default="", help="where pip finds torch for the peer, as TORCH_INDEX")
    parser.add_argument("--seed", type=int, default=0, help="of the first pair; each pair has its own")
    timing = parser.add_argument_group("time and memory")
    timing.add_argument("--cases", nargs="+", choices=list(CASES), default=["lora", "full"])
    timing.add_argument("--pairs", type=int, default=5, help="processes of each side, by turns")
    timing.add_argument("--iterations", type=int, default=3, help="of a process; the first is a warm-up")
    timing.add_argument("--minutes", type=float, default=12.0, help="no pair begins later")
    learning = parser.add_argument_group("curves")
    learning.add_argument("--curves", action="store_true", help="compare how the reward grows, not the time")
    learning.add_argument("--rates", nargs="+", default=["3e-4", "1e-3", "2e-3"], help="learning rates to choose from")
    learning.add_argument("--seeds", type=int, default=3)
    learning.add_argument("--curve-iterations", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS, help="results; README.md changes with the default alone")
    return parser.parse_args()


def timing(args: argparse.Namespace) -> dict:
    """Each pair runs our side, then the peer's, for every case: what slows the machine down slows both."""
    runs: list[dict] = []
    start = time.monotonic()
    for pair in range(args.pairs):
        if time.monotonic() - start > 60 * args.minutes:
            print(f"out of time after {pair} pairs")
            break
        for case in args.cases:
            for side, options in zip(("ours", "peer"), CASES[case], strict=True):
                found = sides.run(sides.command(side, args.iterations, args.seed + pair, *options))
                runs.append({"case": case, "pair": pair, "role": side} | found)
                print(f"pair {pair} {case} {side}: CPU {found['cpu_s']} s, wall {found['wall_s']} s", flush=True)
    return {"seed": args.seed, "minutes": round((time.monotonic() - start) / 60, 1), "runs": runs}


def main() -> None:
    args = arguments()
    if args.iterations < 2:
        raise SystemExit("--iterations must be 2 or more: the first is a warm-up.")
    sides.prepare(args.torch_index)
    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    about = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), **sides.machine()}
    if args.curves:
        found = curves(args.rates, args.seeds, args.curve_iterations, args.seed)
        results["curves"] = about | found
        report.draw(found, args.out.with_name("curves.png"))
    else:
        results["timing"] = about | timing(args)
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    parts = report.parts(results)
    print(*parts.values(), sep="\n")
    if args.out == RESULTS:
        report.fill(sides.HERE / "README.md", parts)


if __name__ == "__main__":
    main()
