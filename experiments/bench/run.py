"""The benchmark: our side and its peers by turns, line after line. See lines.py for what is measured.

    make bench                                    the brief cases of all lines (twenty minutes)
    make bench ARGS="sft"                         those of one line
    make bench ARGS="sft reward --all --pairs 7"  all cases of two lines
    make bench ARGS="sft --cases 'exchanges, tiny, LoRA' --minutes 10"

Each line writes results/LINE.json and then the table and the figure of README.md, beside this file.
"""

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

import report
import sides
from lines import LINES, Case, Line
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

console = Console(markup=False, highlight=False)
TURN = Lock()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="line", help=f"of: {', '.join(LINES)} (by default all)")
    parser.add_argument("--cases", nargs="+", help="names of cases")
    parser.add_argument("--all", action="store_true", help="all cases, not only the brief ones")
    parser.add_argument("--pairs", type=int, default=5, help="rounds, in each of which every side has one turn")
    parser.add_argument("--minutes", type=float, help="of a line: no round begins later (default: as lines.py says)")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each has its own")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public data")
    parser.add_argument("--torch-index", default="", help="where pip finds torch for a peer's environment")
    args = parser.parse_args()
    unknown = [name for name in args.lines if name not in LINES]
    if unknown:
        parser.error(f"there is no line {unknown[0]!r}; there are {', '.join(LINES)}")
    return args


def chosen(line: Line, args: argparse.Namespace) -> dict[str, Case]:
    if args.cases:
        return {name: case for name, case in line.cases.items() if name in args.cases}
    return {name: case for name, case in line.cases.items() if case.brief or args.all}


def measure(name: str, line: Line, cases: dict[str, Case], args: argparse.Namespace, bar: Progress) -> dict[str, dict]:
    """The runs of each case. In every round another side of a case comes first: what drifts falls on all alike."""
    about = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), **sides.machine()}
    turns = {case: {"ours": found.ours, **found.peers} for case, found in cases.items()}
    runs: dict[str, list[dict]] = {case: [] for case in cases}
    at_work = sides.Sides(name, line.warm)
    total, start = args.pairs * sum(map(len, turns.values())), time.monotonic()
    task = bar.add_task(name, total=total)
    try:
        for number in range(args.pairs):
            if time.monotonic() - start > 60 * (args.minutes or line.minutes):
                console.print(f"{name}: out of time after {number} of {args.pairs} rounds")
                break
            for case, both in turns.items():
                order = [*both.items()]
                shift = number % len(order)
                for role, side in order[shift:] + order[:shift]:
                    bar.update(task, description=f"{name}: {case}: {role}")
                    runs[case].append(at_work.run(side, args.seed + number) | {"round": number, "side": role})
                    bar.advance(task)
    finally:
        at_work.close()
    return {case: about | {"versions": versions(turns[case]), "runs": found} for case, found in runs.items() if found}


def versions(turns: dict[str, sides.Side]) -> dict[str, dict[str, str]]:
    """Of each environment that a side of the case ran in."""
    return {side.python: sides.versions(side.python) for side in turns.values()}


def one(name: str, args: argparse.Namespace, bar: Progress) -> str | None:
    """A line, measured and written down. Its name where it failed."""
    line = LINES[name]
    cases = chosen(line, args)
    lacking = [file for file in line.needs if not (sides.ROOT / args.data / file).exists()]
    if lacking:
        console.print(f"{name}: left out, {args.data} has no {lacking[0]} (--data names another folder)")
    if lacking or not cases:
        return None
    try:
        with TURN:  # some lines need the same things
            sides.prepare(line.prepare, data=args.data, torch_index=args.torch_index)
        found = measure(name, line, cases, args, bar)
    except sides.Failed as why:
        console.print(f"{name}: {why}", style="red")
        return name
    with TURN:
        report.keep(name, found)
        console.print(report.summary(name, found))
    return None


def main() -> None:
    args = arguments()
    names = sorted(args.lines or LINES, key=lambda name: -LINES[name].minutes)  # the longest first: they end together
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    with bar, ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as lanes:  # a side takes one thread: two lines at a time
        failed = [name for name in lanes.map(lambda name: one(name, args, bar), names) if name]
    report.write()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
