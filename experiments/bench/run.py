"""The benchmark: our side and its peers, interleaved, for each line. See lines.py for what is measured.

    make bench                                    the default cases of all lines (twenty minutes)
    make bench ARGS="sft"                         the default cases of one line
    make bench ARGS="sft reward --all --pairs 7"  all cases of two lines
    make bench ARGS="sft --cases 'exchanges, tiny, LoRA' --minutes 10"

Each line writes results/LINE.json in this folder; at the end the table and the figure of README.md are updated.
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
LOCK = Lock()  # for preparation, which lines share, and for output


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="line", help=f"one of {', '.join(LINES)} (default: all)")
    parser.add_argument("--cases", nargs="+", help="names of cases")
    parser.add_argument("--all", action="store_true", help="all cases, not only the default ones")
    parser.add_argument("--pairs", type=int, default=5, help="rounds; in each, every side runs once")
    parser.add_argument("--minutes", type=float, help="per line: no round starts later (default: see lines.py)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first round; the next one adds 1, and so on")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public data")
    parser.add_argument("--torch-index", default="", help="package index of torch for a peer's environment")
    args = parser.parse_args()
    unknown = [name for name in args.lines if name not in LINES]
    if unknown:
        parser.error(f"there is no line {unknown[0]!r}; there are {', '.join(LINES)}")
    return args


def select_cases(line: Line, args: argparse.Namespace) -> dict[str, Case]:
    if args.cases:
        return {name: case for name, case in line.cases.items() if name in args.cases}
    return {name: case for name, case in line.cases.items() if case.default or args.all}


def measure(name: str, line: Line, cases: dict[str, Case], args: argparse.Namespace, bar: Progress) -> dict[str, dict]:
    """The runs of each case. Every round starts with another side, so that drift affects all sides alike."""
    environment = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), **sides.machine()}
    case_sides = {name: available({"ours": case.ours, **case.peers}) for name, case in cases.items()}
    case_sides = {name: named_sides for name, named_sides in case_sides.items() if "ours" in named_sides}
    for name in cases.keys() - case_sides.keys():
        console.print(f"{line.title}: {name}: skipped, there is no {cases[name].ours.requires}")
    runs: dict[str, list[dict]] = {case: [] for case in case_sides}
    runner = sides.SideRunner(name, line.warm)
    total, start = args.pairs * sum(map(len, case_sides.values())), time.monotonic()
    task = bar.add_task(name, total=total)
    try:
        for number in range(args.pairs):
            if time.monotonic() - start > 60 * (args.minutes or line.minutes):
                console.print(f"{name}: out of time after {number} of {args.pairs} rounds")
                break
            for case, named_sides in case_sides.items():
                order = [*named_sides.items()]
                shift = number % len(order)
                for side_name, side in order[shift:] + order[:shift]:
                    bar.update(task, description=f"{name}: {case}: {side_name}")
                    result = runner.run(side, args.seed + number)
                    runs[case].append(result | {"round": number, "side": side_name})
                    bar.advance(task)
    finally:
        runner.close()
    return {
        case: environment | {"versions": versions(case_sides[case]), "runs": case_runs}
        for case, case_runs in runs.items()
        if case_runs
    }


def available(named_sides: dict[str, sides.Side]) -> dict[str, sides.Side]:
    return {name: side for name, side in named_sides.items() if (sides.ROOT / side.requires).exists()}


def versions(named_sides: dict[str, sides.Side]) -> dict[str, dict[str, str]]:
    """Package versions of each environment that a side of the case runs in."""
    return {side.python: sides.versions(side.python) for side in named_sides.values()}


def run_line(name: str, args: argparse.Namespace, bar: Progress) -> str | None:
    """Measure a line and save its results. Returns its name if it failed."""
    line = LINES[name]
    cases = select_cases(line, args)
    missing = [file for file in line.data_files if not (sides.ROOT / args.data / file).exists()]
    if missing:
        console.print(f"{name}: skipped, {args.data} has no {missing[0]} (choose another folder with --data)")
    if missing or not cases:
        return None
    try:
        with LOCK:
            sides.prepare(line.prepare, data=args.data, torch_index=args.torch_index)
        results = measure(name, line, cases, args, bar)
    except sides.SideError as error:
        console.print(f"{name}: {error}", style="red")
        return name
    with LOCK:
        report.save_results(name, results)
        console.print(report.summary(name, results))
    return None


def main() -> None:
    args = arguments()
    names = sorted(args.lines or LINES, key=lambda name: -LINES[name].minutes)  # the longest first, for an even load
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    with bar, ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:  # a side takes one thread: two lines at once
        failed = [name for name in pool.map(lambda name: run_line(name, args, bar), names) if name]
    report.write_report()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
