"""All results as one table and one figure: ``python experiments/bench/report.py`` writes both anew."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lines import LINES, OURS, Measure

HERE = Path(__file__).resolve().parent
RESULTS, FIGURE, README = HERE / "results", HERE / "ratios.png", HERE / "README.md"
BEGIN, END = "<!-- table: written by report.py -->", "<!-- end of table -->"
COLOURS = {True: "#2b8a3e", False: "#c92a2a", None: "#868e96"}  # reached, missed, without a goal


@dataclass(frozen=True)
class Row:
    """Our side of a case against a peer's in one measure, or against a limit."""

    line: str
    case: str
    peer: str
    measure: Measure
    ours: float
    theirs: float
    ratios: list[float]  # ours ÷ theirs, of each round
    goal: float | None
    command: str = ""
    agree: str = ""

    @property
    def middle(self) -> float:
        return median(self.ratios)

    @property
    def reached(self) -> bool | None:
        if self.goal is None:
            return None
        return self.middle >= self.goal if self.measure.more else self.middle <= self.goal

    def gain(self, ratio: float) -> float:
        """A ratio turned so that above 1 is better."""
        return ratio if self.measure.more else 1 / ratio


def keep(name: str, found: dict[str, dict]) -> None:
    """Write a line's results down, beside those of its cases that were not run this time."""
    file = RESULTS / f"{name}.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    cases = {case: about for case, about in (before | found).items() if case in LINES[name].cases}
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


def all_results() -> dict[str, dict[str, dict]]:
    """By line and case; what lines.py no longer has is left out."""
    found = {}
    for name, line in LINES.items():
        file = RESULTS / f"{name}.json"
        cases = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if known := {case: cases[case] for case in line.cases if case in cases}:
            found[name] = known
    return found


def rows(name: str, results: dict[str, dict]) -> list[Row]:
    """A row for each goal; a peer without a goal has one in the line's first measure."""
    line, found = LINES[name], []
    for case, about in results.items():
        runs = by_side(about["runs"])
        peers = {peer: side for peer, side in line.cases[case].peers.items() if peer in runs}
        for peer, side in peers.items():
            for measure in [m for m in line.measures if m.name in side.goals] or line.measures[:1]:
                ours, theirs = ([measure.of(run) for run in runs[role]] for role in ("ours", peer))
                ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
                goal, said = side.goals.get(measure.name), reached_alike(line.agree, runs[peer])
                both = median(ours), median(theirs)
                found.append(Row(name, case, peer, measure, *both, ratios, goal, runs[peer][0]["command"], said))
        for measure in line.measures:
            if limit := line.cases[case].limits.get(measure.name):
                ours = [measure.of(run) for run in runs["ours"]]
                found.append(Row(name, case, "limit", measure, median(ours), limit, [a / limit for a in ours], 1.0))
    return found


def by_side(runs: list[dict]) -> dict[str, list[dict]]:
    """Each side's runs, in the order of the rounds."""
    return {
        role: sorted((run for run in runs if run["side"] == role), key=lambda run: run["round"])
        for role in dict.fromkeys(run["side"] for run in runs)
    }


def reached_alike(figures: list[str], runs: list[dict]) -> str:
    """What must come out alike on all sides, as medians."""
    return ", ".join(f"{name} {median(run[name] for run in runs):.3g}" for name in figures)


def table(results: dict[str, dict[str, dict]]) -> str:
    """Markdown: for each line its setting and its rows, each with the command of its first run."""
    parts = []
    for name, cases in results.items():
        parts.append(f"### {name}: {LINES[name].title}\n")
        parts += [f"{setting(about)} Cases: {'; '.join(those)}.\n" for those, about in alike(cases)]
        columns = (
            "case",
            "side",
            "measure",
            "ours",
            "theirs",
            "ours ÷ theirs: median (least to most)",
            "goal",
            "reached",
        )
        parts.append(f"| {' | '.join(columns)} | came out at | command |")
        parts.append("|---|---|---|---:|---:|---:|---:|---|---|---|")
        for case, about in cases.items():
            runs = by_side(about["runs"])["ours"]
            said = reached_alike(LINES[name].agree, runs)
            parts.append(f"| {case} | **ours** | | | | | | | {said} | `{runs[0]['command']}` |")
            parts += [written(row) for row in rows(name, {case: about})]
        parts.append("")
    return "\n".join(parts)


def written(row: Row) -> str:
    form, ratio = row.measure.form, f"{row.middle:.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})"
    goal = "" if row.goal is None else f"{'≥' if row.measure.more else '≤'} {row.goal:.3g}"
    verdict = {True: "yes", False: "**no**", None: ""}[row.reached]
    command = f"`{row.command}`" if row.command else ""
    return (
        f"| {row.case} | {row.peer} | {row.measure.name} | {row.ours:{form}} | {row.theirs:{form}} | {ratio} | {goal} |"
        f" {verdict} | {row.agree} | {command} |"
    )


def alike(cases: dict[str, dict]) -> list[tuple[list[str], dict]]:
    """Cases that were measured together, with what is known of their runs."""
    found: dict[str, list[str]] = {}
    for case, about in cases.items():
        found.setdefault(about["date"], []).append(case)
    return [
        (those, cases[those[0]] | {"runs": [r for c in those for r in cases[c]["runs"]]}) for those in found.values()
    ]


def setting(about: dict) -> str:
    """Machine, versions, date and load in a sentence or two."""
    told = {python: ", ".join(f"{n} {v}" for n, v in those.items()) for python, those in about["versions"].items()}
    others = "".join(f" Of {python}: {those}." for python, those in told.items() if python != OURS)
    loads, rounds = [run["load"] for run in about["runs"]], 1 + max(run["round"] for run in about["runs"])
    return (
        f"{about['date']}, commit {about['commit']}, {about['processor']}, {about['cores']} cores, "
        f"{about['memory_gb']} GB, {about['system']}, Python {about['python']}, one thread a process, {told[OURS]}."
        f"{others} Rounds: {rounds}. Load average before the processes: {min(loads)} to {max(loads)}."
    )


def summary(name: str, results: dict[str, dict]) -> str:
    """What the terminal is told of a line that has just been measured."""
    said = [f"{name}: ours ÷ theirs"]
    for row in rows(name, results):
        goal = "" if row.goal is None else f"  goal {row.goal:.3g}: {'reached' if row.reached else 'not reached'}"
        spread = f"{row.middle:.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})"
        said.append(f"  {row.case} | {row.peer} | {row.measure.name}: {spread}{goal}")
    return "\n".join(said)


def draw(found: list[Row], out: Path) -> None:
    """Every ratio with its spread against its goal, on a log scale; to the right is better for us."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(10, 1.2 + 0.26 * len(found)), layout="constrained")
    for at, row in enumerate(found):
        gains = sorted(map(row.gain, row.ratios))
        panel.plot([gains[0], gains[-1]], [at, at], color=COLOURS[row.reached], linewidth=3, alpha=0.4)
        panel.plot(row.gain(row.middle), at, "o", color=COLOURS[row.reached])
        if row.goal is not None:
            panel.plot(row.gain(row.goal), at, "|", color="black", markersize=11, markeredgewidth=2)
    for label, colour in (("goal reached", True), ("goal missed", False), ("no goal", None)):
        panel.plot([], [], "o-", color=COLOURS[colour], label=label)
    panel.plot([], [], "|", color="black", markersize=11, markeredgewidth=2, label="goal")
    panel.axvline(1, color="#adb5bd", linewidth=1, zorder=0)
    panel.set_yticks(range(len(found)), [f"{r.line}: {r.case} | {r.peer} | {r.measure.name}" for r in found])
    panel.tick_params(axis="y", labelsize=7)
    panel.set_ylim(len(found) - 0.5, -0.5)
    panel.set_xscale("log")
    ticks = [
        x
        for x in (0.25, 0.33, 0.5, 0.7, 1, 1.4, 2, 3, 4, 6, 10, 20, 50)
        if panel.get_xlim()[0] < x < panel.get_xlim()[1]
    ]
    panel.set_xticks(ticks, [f"{x:g}" for x in ticks])
    panel.minorticks_off()
    panel.set_xlabel("times better than the peer (log scale): median of the rounds, least to most")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4)
    figure.savefig(out, dpi=130)
    plt.close(figure)


def write() -> None:
    """The figure of what a plain ``make bench`` measures, and the table of all between its marks in README.md.

    The words around them are written by hand.
    """
    results = all_results()
    brief = {n: {c: about for c, about in cases.items() if LINES[n].cases[c].brief} for n, cases in results.items()}
    found = [row for name, cases in brief.items() for row in rows(name, cases)]
    if found:
        draw(found, FIGURE)
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    README.write_text(f"{head}{BEGIN}\n\n{table(results)}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    write()
