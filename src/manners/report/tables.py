"""Tables of strings: for the page as HTML, for the write-ups as Markdown."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from manners.evaluation.stats import Estimate
from manners.report.configurations import Configuration
from manners.report.query import Run
from manners.report.statistics import over_seeds

# What a row shows, at most six of them, in this order; the rest is in the table by seed.
FIRST = {
    "fit": "manner fits",
    "right": "names the right fact",
    "spearman": "Spearman",
    "pair_accuracy": "pairs in order",
    "mse": "mean squared error",
    "sanity": "sees through spoilt replies",
    "loss": "held-out loss",
    "reward_standard_deviations": "reward, standard deviations",
    "kl_to_the_start_nats_a_reply": "KL to the start, nats a reply",
    "ended": "replies that end",
}
SHARES = ("right", "ended", "pair_accuracy")


@dataclass(frozen=True)
class Table:
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(f"| {' | '.join(map(escape_cell, line))} |" for line in lines)


def escape_cell(text: str) -> str:
    """Text that stays within its cell of a Markdown table."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).replace("|", "\\|")


def by_configuration(found: Sequence[Configuration]) -> Table:
    """A row a configuration: its first measures, and what it cost."""
    present = {name for one in found for name in measures(one.runs)}
    shown = [name for name in FIRST if name in present][:6]
    priced = [key for key in COSTS if any(key in run.metrics for one in found for run in one.runs)]
    header = ["configuration", "n", *(FIRST[name] for name in shown), *(COSTS[key][0] for key in priced)]
    rows = [
        [
            one.label,
            str(len(one.runs)),
            *(format_change(one.runs, name) for name in shown),
            *(mean_cost(one.runs, key) for key in priced),
        ]
        for one in found
    ]
    return Table(header, rows)


def seed_table(one: Configuration) -> Table:
    """A row a measure: every seed, and where there are several their mean and the gain from before to after."""
    several, names = len(one.runs) > 1, measures(one.runs)
    gains = several and any(f"before/{name}" in run.metrics for run in one.runs for name in names)
    header = ["measure", *(f"seed {run.seed}" if run.seed else run.name for run in one.runs)]
    header += ["mean"] * several + ["gain"] * gains
    return Table(
        header,
        [
            [measure_title(name), *(format_change([run], name) for run in one.runs)]
            + [format_change(one.runs, name)] * several
            + [change_from_before(one.runs, name)] * gains
            for name in names
        ],
    )


def measures(runs: Sequence[Run]) -> list[str]:
    """Names of what was measured after training, the first ones first."""
    found = {key.removeprefix("after/") for run in runs for key in run.metrics if key.startswith("after/")}
    return [name for name in FIRST if name in found] + sorted(found - set(FIRST))


def measure_title(name: str) -> str:
    return FIRST.get(name) or name.replace("fit_", "fits: ", 1 if name.startswith("fit_") else 0).replace("_", " ")


def format_change(runs: Sequence[Run], name: str) -> str:
    """Before → after where there are both; – where no run has it; of how many runs where some have it not."""
    parts = []
    for when in ("before", "after"):
        values = [run.metrics[f"{when}/{name}"] for run in runs if f"{when}/{name}" in run.metrics]
        if values:
            parts.append(
                format_number(over_seeds(values), name) + (f" (n={len(values)})" if len(values) < len(runs) else "")
            )
    return " → ".join(parts) or "–"


def change_from_before(runs: Sequence[Run], name: str) -> str:
    """After less before, of the runs that have both."""
    both = [(run.metrics.get(f"before/{name}"), run.metrics.get(f"after/{name}")) for run in runs]
    gains = [after - before for before, after in both if before is not None and after is not None]
    return format_number(over_seeds(gains), name, signed=True) if gains else "–"


def format_number(e: Estimate, name: str, signed: bool = False) -> str:
    """ "78.7 % [56.6, 100.8]" or "0.123 [0.100, 0.146]"; a gain has its sign, and is in points of a percentage."""
    share = name in SHARES or name.startswith(("fit", "sanity"))
    factor, digits, unit = (100, 1, " points" if signed else " %") if share else (1, 3, "")
    value, low, high = (f"{factor * x:{'+' if signed else ''}z.{digits}f}" for x in (e.value, e.low, e.high))
    sure = math.isnan(e.low) or e.low == e.high  # one seed, or all the same, as the base is before training
    return f"{value}{unit}" + ("" if sure else f" [{low}, {high}]")


def mean_cost(runs: Sequence[Run], key: str) -> str:
    """Of a run, by their mean; – where no run has logged it."""
    found = [run.metrics[key] for run in runs if key in run.metrics]
    return COSTS[key][1](sum(found) / len(found)) if found else "–"


def format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def format_count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "cost/seconds": ("time", format_duration),
    "cost/tokens": ("tokens", format_count),
    "cost/peak_memory_gb": ("peak memory", "{:.2f} GB".format),
}
