"""The table and the figure of README.md from all results: ``python experiments/bench/report.py`` updates both."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lines import LINES, OURS, Measure

HERE = Path(__file__).resolve().parent
RESULTS, FIGURE, README, TABLE = HERE / "results", HERE / "ratios.png", HERE / "README.md", HERE / "table.md"
BEGIN, END = "<!-- table: written by report.py -->", "<!-- end of table -->"
TABLE_NOTE = (
    "Written by report.py from results/*.json; [README.md](README.md) explains the columns. Commands have the options "
    "of the commit that was measured: `--apart` is called `--microbatches` since."
)
COLOURS = {True: "#2b8a3e", False: "#c92a2a", None: "#868e96"}  # goal met, goal missed, no goal


@dataclass(frozen=True)
class Row:
    """Our side of a case compared with one peer in one measure, or with a limit."""

    line: str
    case: str
    peer: str
    measure: Measure
    ours: float
    theirs: float
    ratios: list[float]  # ours ÷ theirs, one per round
    goal: float | None
    command: str = ""
    outcome: str = ""

    @property
    def median_ratio(self) -> float:
        return median(self.ratios)

    @property
    def goal_met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.median_ratio >= self.goal if self.measure.higher_is_better else self.median_ratio <= self.goal

    def improvement(self, ratio: float) -> float:
        """The ratio, inverted where lower is better: above 1, ours is better."""
        return ratio if self.measure.higher_is_better else 1 / ratio


def save_results(name: str, results: dict[str, dict]) -> None:
    """Save the results of a line and keep those of its cases that were not run this time."""
    file = RESULTS / f"{name}.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    cases = {case: record for case, record in (saved | results).items() if case in LINES[name].cases}
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


def load_results() -> dict[str, dict[str, dict]]:
    """All results, by line and case; those that lines.py no longer has are left out."""
    results = {}
    for name, line in LINES.items():
        file = RESULTS / f"{name}.json"
        cases = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if known := {case: cases[case] for case in line.cases if case in cases}:
            results[name] = known
    return results


def rows(name: str, results: dict[str, dict]) -> list[Row]:
    """One row per goal; a peer without a goal gets one for the first measure of the line."""
    line, table_rows = LINES[name], []
    for case, record in results.items():
        runs = by_side(record["runs"])
        peers = {peer: side for peer, side in line.cases[case].peers.items() if peer in runs}
        for peer, side in peers.items():
            for measure in [m for m in line.measures if m.name in side.goals] or line.measures[:1]:
                ours, theirs = ([measure.value(run) for run in runs[side_name]] for side_name in ("ours", peer))
                ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
                goal, outcome = side.goals.get(measure.name), median_outcomes(line.outcomes, runs[peer])
                command = runs[peer][0]["command"]
                medians = median(ours), median(theirs)
                table_rows.append(Row(name, case, peer, measure, *medians, ratios, goal, command, outcome))
        for measure in line.measures:
            if limit := line.cases[case].limits.get(measure.name):
                ours = [measure.value(run) for run in runs["ours"]]
                ratios = [value / limit for value in ours]
                table_rows.append(Row(name, case, "limit", measure, median(ours), limit, ratios, 1.0))
    return table_rows


def by_side(runs: list[dict]) -> dict[str, list[dict]]:
    """The runs of each side, in the order of the rounds."""
    return {
        side: sorted((run for run in runs if run["side"] == side), key=lambda run: run["round"])
        for side in dict.fromkeys(run["side"] for run in runs)
    }


def median_outcomes(names: list[str], runs: list[dict]) -> str:
    """The medians of what should agree on all sides."""
    return ", ".join(f"{name} {median(run[name] for run in runs):.3g}" for name in names)


def table(results: dict[str, dict[str, dict]]) -> str:
    """Markdown: for each line its environment and its rows, each with the command of its first run."""
    parts = []
    for name, cases in results.items():
        parts.append(f"### {name}: {LINES[name].title}\n")
        parts += [f"{environment(record)} Cases: {'; '.join(names)}.\n" for names, record in by_date(cases)]
        columns = (
            "case",
            "side",
            "measure",
            "ours",
            "theirs",
            "ours ÷ theirs: median (min to max)",
            "goal",
            "met",
        )
        parts.append(f"| {' | '.join(columns)} | outcome | command |")
        parts.append("|---|---|---|---:|---:|---:|---:|---|---|---|")
        for case, record in cases.items():
            runs = by_side(record["runs"])["ours"]
            outcome = median_outcomes(LINES[name].outcomes, runs)
            parts.append(f"| {case} | **ours** | | | | | | | {outcome} | `{runs[0]['command']}` |")
            parts += [table_row(row) for row in rows(name, {case: record})]
        parts.append("")
    return "\n".join(parts)


def table_row(row: Row) -> str:
    command = f"`{row.command}`" if row.command else ""
    return f"| {row.case} | {comparison_cells(row)} | {row.outcome} | {command} |"


def comparison_cells(row: Row) -> str:
    """Peer, measure, ours, theirs, ratio, goal and whether it is met."""
    ours, theirs = (format(value, row.measure.number_format) for value in (row.ours, row.theirs))
    ratio = f"{row.median_ratio:.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})"
    goal = "" if row.goal is None else f"{'≥' if row.measure.higher_is_better else '≤'} {row.goal:.3g}"
    met = {True: "yes", False: "**no**", None: ""}[row.goal_met]
    return f"{row.peer} | {row.measure.name} | {ours} | {theirs} | {ratio} | {goal} | {met}"


def default_table(table_rows: list[Row]) -> str:
    """Markdown: the default cases of all lines, without commands."""
    return "\n".join(
        [
            "| line: case | peer | measure | ours | theirs | ours ÷ theirs: median (min to max) | goal | met |",
            "|---|---|---|---:|---:|---:|---:|---|",
            *(f"| {row.line}: {row.case} | {comparison_cells(row)} |" for row in table_rows),
        ]
    )


def by_date(cases: dict[str, dict]) -> list[tuple[list[str], dict]]:
    """The names of cases that were measured in one go, and the record of all their runs."""
    names: dict[str, list[str]] = {}
    for case, record in cases.items():
        names.setdefault(record["date"], []).append(case)
    return [
        (group, cases[group[0]] | {"runs": [run for case in group for run in cases[case]["runs"]]})
        for group in names.values()
    ]


def environment(record: dict) -> str:
    """Machine, versions, date and load in a sentence or two."""
    versions = {
        python: ", ".join(f"{name} {version}" for name, version in packages.items())
        for python, packages in record["versions"].items()
    }
    peers = "".join(f" In {python}: {packages}." for python, packages in versions.items() if python != OURS)
    loads, rounds = [run["load"] for run in record["runs"]], 1 + max(run["round"] for run in record["runs"])
    return (
        f"{record['date']}, commit {record['commit']}, {record['processor']}, {record['cores']} cores, "
        f"{record['memory_gb']} GB, {record['system']}, Python {record['python']}, one thread per process, "
        f"{versions[OURS]}.{peers} Rounds: {rounds}. Load average before each run: {min(loads)} to {max(loads)}."
    )


def summary(name: str, results: dict[str, dict]) -> str:
    """What is printed about a line that has just been measured."""
    lines = [f"{name}: ours ÷ theirs"]
    for row in rows(name, results):
        goal = "" if row.goal is None else f"  goal {row.goal:.3g}: {'met' if row.goal_met else 'missed'}"
        spread = f"{row.median_ratio:.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})"
        lines.append(f"  {row.case} | {row.peer} | {row.measure.name}: {spread}{goal}")
    return "\n".join(lines)


def draw(table_rows: list[Row], out: Path) -> None:
    """Every ratio with its spread and its goal, on a log scale; further right is better for ours."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(10, 1.2 + 0.26 * len(table_rows)), layout="constrained")
    for y, row in enumerate(table_rows):
        improvements = sorted(map(row.improvement, row.ratios))
        panel.plot([improvements[0], improvements[-1]], [y, y], color=COLOURS[row.goal_met], linewidth=3, alpha=0.4)
        panel.plot(row.improvement(row.median_ratio), y, "o", color=COLOURS[row.goal_met])
        if row.goal is not None:
            panel.plot(row.improvement(row.goal), y, "|", color="black", markersize=11, markeredgewidth=2)
    for label, colour in (("goal met", True), ("goal missed", False), ("no goal", None)):
        panel.plot([], [], "o-", color=COLOURS[colour], label=label)
    panel.plot([], [], "|", color="black", markersize=11, markeredgewidth=2, label="goal")
    panel.axvline(1, color="#adb5bd", linewidth=1, zorder=0)
    panel.set_yticks(range(len(table_rows)), [f"{r.line}: {r.case} | {r.peer} | {r.measure.name}" for r in table_rows])
    panel.tick_params(axis="y", labelsize=7)
    panel.set_ylim(len(table_rows) - 0.5, -0.5)
    panel.set_xscale("log")
    ticks = [
        x
        for x in (0.25, 0.33, 0.5, 0.7, 1, 1.4, 2, 3, 4, 6, 10, 20, 50)
        if panel.get_xlim()[0] < x < panel.get_xlim()[1]
    ]
    panel.set_xticks(ticks, [f"{x:g}" for x in ticks])
    panel.minorticks_off()
    panel.set_xlabel("times better than the peer (log scale): median of the rounds, min to max")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4)
    figure.savefig(out, dpi=130)
    plt.close(figure)


def write_report() -> None:
    """Update the figure, the table of default cases between its markers in README.md, and table.md with everything."""
    results = load_results()
    default = [
        row
        for name, cases in results.items()
        for row in rows(name, {case: record for case, record in cases.items() if LINES[name].cases[case].default})
    ]
    if default:
        draw(default, FIGURE)
    head, rest = README.read_text(encoding="utf-8").split(BEGIN)
    _, tail = rest.split(END)
    README.write_text(f"{head}{BEGIN}\n\n{default_table(default)}\n\n{END}{tail}", encoding="utf-8")
    TABLE.write_text(f"# All results of the benchmark\n\n{TABLE_NOTE}\n\n{table(results)}", encoding="utf-8")


if __name__ == "__main__":
    write_report()
