"""Tables of metrics over seeds, as text: the page shows them as HTML, and write-ups as Markdown."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from manners.evaluation.reports.table import Table
from manners.evaluation.stats import Estimate
from manners.report.configurations import Configuration
from manners.report.query import Run

# Metrics of the table by configuration, in this order, at most six of them; the table by seed has all.
MAIN_METRICS = {
    "style_accuracy": "style accuracy",
    "fact_accuracy": "fact accuracy",
    "spearman": "Spearman",
    "pair_accuracy": "pair accuracy",
    "mse": "mean squared error",
    "sanity": "corrupted replies scored lower",
    "loss": "held-out loss",
    "reward_standard_deviations": "reward, standard deviations",
    "kl_to_the_reference_nats_per_reply": "KL of sampled replies to the reference, nats per reply",
    "eos_rate": "replies with EOS",
}
PERCENTAGES = ("style_accuracy", "fact_accuracy", "eos_rate", "pair_accuracy", "sanity")  # and their subgroups


def configuration_table(configurations: Sequence[Configuration]) -> Table:
    """A row per configuration: its main metrics and its cost."""
    runs = [run for configuration in configurations for run in configuration.runs]
    present = metric_names(runs)
    metrics = [name for name in MAIN_METRICS if name in present][:6]
    costs = [key for key in COSTS if any(key in run.metrics for run in runs)]
    header = ["configuration", "n", *(MAIN_METRICS[name] for name in metrics), *(COSTS[key][0] for key in costs)]
    rows = [
        [
            configuration.label,
            str(len(configuration.runs)),
            *(format_before_after(configuration.runs, name) for name in metrics),
            *(mean_cost(configuration.runs, key) for key in costs),
        ]
        for configuration in configurations
    ]
    return Table(header, rows)


def seed_table(configuration: Configuration) -> Table:
    """A row per metric: its value for each seed and, if there are several, their mean and the mean gain."""
    runs = configuration.runs
    several, names = len(runs) > 1, metric_names(runs)
    gains = several and any(f"before/{name}" in run.metrics for run in runs for name in names)
    header = ["metric", *(f"seed {run.seed}" if run.seed else run.name for run in runs)]
    header += ["mean"] * several + ["gain"] * gains
    rows = [
        [metric_title(name), *(format_before_after([run], name) for run in runs)]
        + [format_before_after(runs, name)] * several
        + [format_gain(runs, name)] * gains
        for name in names
    ]
    return Table(header, rows)


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Names of the metrics measured after training, the main ones first."""
    names = {key.removeprefix("after/") for run in runs for key in run.metrics if key.startswith("after/")}
    return [name for name in MAIN_METRICS if name in names] + sorted(names - set(MAIN_METRICS))


def metric_title(name: str) -> str:
    """ "style accuracy: good question" for ``style_accuracy_good_question``."""
    return MAIN_METRICS.get(name) or name.replace("style_accuracy_", "style accuracy: ").replace("_", " ")


def format_before_after(runs: Sequence[Run], name: str) -> str:
    """Means before → after training, with the number of runs if some lack the metric; – if all do."""
    parts = []
    for prefix in ("before", "after"):
        values = [run.metrics[f"{prefix}/{name}"] for run in runs if f"{prefix}/{name}" in run.metrics]
        if values:
            count = f" (n={len(values)})" if len(values) < len(runs) else ""
            parts.append(format_estimate(mean_over_seeds(values), name) + count)
    return " → ".join(parts) or "–"


def format_gain(runs: Sequence[Run], name: str) -> str:
    """The mean of after − before, over the runs that have both."""
    pairs = [(run.metrics.get(f"before/{name}"), run.metrics.get(f"after/{name}")) for run in runs]
    gains = [after - before for before, after in pairs if before is not None and after is not None]
    return format_estimate(mean_over_seeds(gains), name, signed=True) if gains else "–"


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """The mean with its 95 % interval, mean ± t · s / √n; the bounds are nan for one seed.

    Seeds are few and the standard deviation is estimated from them, hence t rather than 1.96 (Student 1908).
    """
    mean, n = float(np.mean(values)), len(values)
    if n == 1 or np.ptp(values) == 0:  # rounding can make the standard deviation of equal numbers positive
        half = math.nan if n == 1 else 0.0
    else:
        half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    return Estimate(mean, float(mean - half), float(mean + half))


def format_estimate(e: Estimate, name: str, signed: bool = False) -> str:
    """ "78.7 % [56.6, 100.8]" or "0.123 [0.100, 0.146]"; a gain is signed, and in percentage points."""
    percent = name.startswith(PERCENTAGES)
    factor, digits, unit = (100, 1, " points" if signed else " %") if percent else (1, 3, "")
    value, low, high = (f"{factor * x:{'+' if signed else ''}z.{digits}f}" for x in (e.value, e.low, e.high))
    exact = math.isnan(e.low) or e.low == e.high  # one seed, or equal values, as the base model's before training
    return f"{value}{unit}" + ("" if exact else f" [{low}, {high}]")


def mean_cost(runs: Sequence[Run], key: str) -> str:
    """The mean cost of a run, over the runs that logged it; – if none did."""
    values = [run.metrics[key] for run in runs if key in run.metrics]
    return COSTS[key][1](sum(values) / len(values)) if values else "–"


def format_duration(seconds: float) -> str:
    """ "1 h 5 min", "4 min 20 s" or "3.2 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def format_count(number: float) -> str:
    """ "1.5 k": three digits and an SI prefix."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "cost/seconds": ("time", format_duration),
    "cost/tokens": ("tokens", format_count),
    "cost/peak_memory_gb": ("peak memory", "{:.2f} GB".format),
}
