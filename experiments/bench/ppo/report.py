"""The benchmark's results as tables and a figure."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev

from curves import LAST, goal

TITLES = {
    "lora": "LoRA (rank 16, all linear layers), our critic a head on the policy's trunk",
    "full": "All weights, our critic a head on the policy's trunk",
    "fixed": "LoRA, 16 tokens sampled for every reply (EOS ends none): batches of the same width on both sides",
    "adapter": "LoRA, our critic an adapter of its own on the trunk (`critic=adapter`)",
}
LABELS = {"ours": "ours", "peer": "TRL 1.12"}
COLOURS = {"ours": "#1c7ed6", "peer": "#e8590c"}
Figure = Callable[[dict], float]


def measured(name: str) -> Figure:
    """The median over a run's iterations but the first."""
    return lambda run: median(run[name][1:])


ROWS: dict[str, tuple[Figure, str]] = {
    "CPU, s an iteration": (measured("cpu_s"), ".2f"),
    "wall, s an iteration": (measured("wall_s"), ".2f"),
    "peak RSS, MB": (lambda run: run["peak_rss_mb"], ".0f"),
    "peak RSS above the start, MB": (lambda run: run["peak_rss_mb"] - run["rss_start_mb"], ".0f"),
    "peak RSS above the models, MB": (lambda run: run["peak_rss_mb"] - run["rss_before_mb"], ".0f"),
    "mean reply, tokens": (measured("length"), ".1f"),
    "longest reply, tokens": (measured("longest"), ".0f"),
}


def parts(results: dict) -> dict[str, str]:
    """Markdown for each part of the results that is there, by name."""
    makers = {"timing": timing, "curves": learning}
    return {name: makers[name](found) for name, found in results.items()}


def timing(found: dict) -> str:
    cases = list(dict.fromkeys(run["case"] for run in found["runs"]))
    loads = [run["load"] for run in found["runs"]]
    where = f"{setting(found)} Load average before the processes: {min(loads)} to {max(loads)}."
    return "\n".join([where, *(table(case, found["runs"]) for case in cases)])


def table(case: str, runs: list[dict]) -> str:
    """Medians over the pairs, and the peer's number over ours in each pair."""
    ours, peer = ([r for r in runs if r["case"] == case and r["role"] == role] for role in ("ours", "peer"))
    lines = [
        f"\n### {TITLES[case]}\n",
        f"Pairs: {len(ours)}, each with a seed of its own, of {len(ours[0]['cpu_s'])} iterations, the first dropped. "
        "The first pair:\n",
        f"    {ours[0]['command']}\n    {peer[0]['command']}\n",
        "| median over the pairs | ours | TRL 1.12 | TRL ÷ ours: median (least to most) |",
        "|---|---:|---:|---:|",
    ]
    for name, (figure, form) in ROWS.items():
        a, b = [figure(r) for r in ours], [figure(r) for r in peer]
        ratios = [y / x for x, y in zip(a, b, strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {name} | {median(a):{form}} | {median(b):{form}} | {spread} |")
    return "\n".join(lines)


def setting(found: dict) -> str:
    """Machine, versions and date in a sentence."""
    ours, peer = (", ".join(f"{n} {v}" for n, v in found[side].items()) for side in ("ours", "peer"))
    return (
        f"{found['date']}, {found['processor']}, {found['cores']} cores, {found['memory_gb']} GB, {found['system']}, "
        f"Python {found['python']}, one thread a process. Ours: commit {found['commit']}, {ours}. Theirs: {peer}."
    )


def chosen(found: dict, role: str) -> list[dict]:
    """A side's runs at its best learning rate."""
    return [r for r in found["runs"] if r["role"] == role and r["rate"] == found["best"][role]]


def learning(found: dict) -> str:
    lines = [
        setting(found),
        f"\nMeans over the last {LAST} iterations: mean ± standard deviation over the seeds.\n",
        "| | learning rate | score | KL, nats a reply | score − 0.05 KL | command |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for role in ("ours", "peer"):
        runs = chosen(found, role)
        score, kl = ([mean(r[key][-LAST:]) for r in runs] for key in ("score", "kl"))
        numbers = " | ".join(both(values) for values in (score, kl, [goal(r) for r in runs]))
        lines.append(f"| {LABELS[role]} | {found['best'][role]} | {numbers} | `{runs[0]['command']}` |")
    tried = [f"{LABELS[r['role']]} {r['rate']}: {goal(r):+.3f}" for r in found["runs"] if r["seed"] == first(found)]
    lines.append(f"\nScore − 0.05 KL of the rates tried, first seed: {'; '.join(tried)}.")
    lines.append("\n![score and KL over the iterations, ours and TRL's](curves.png)")
    return "\n".join(lines)


def first(found: dict) -> int:
    return min(r["seed"] for r in found["runs"])


def both(values: list[float]) -> str:
    return f"{mean(values):+.3f} ± {stdev(values) if len(values) > 1 else 0.0:.3f}"


def draw(found: dict, out: Path) -> None:
    """Score and KL over the iterations, mean and one standard deviation over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, (key, label) in zip(axes, [("score", "score a reply"), ("kl", "KL, nats a reply")], strict=True):
        for role, colour in COLOURS.items():
            runs = chosen(found, role)
            values = np.array([r[key] for r in runs])  # (seeds, iterations)
            at, centre = np.arange(1, values.shape[1] + 1), values.mean(0)
            off = values.std(0, ddof=1) if len(runs) > 1 else 0 * centre
            name = f"{LABELS[role]}, learning rate {found['best'][role]}, {len(runs)} seeds"
            panel.plot(at, centre, color=colour, label=name)
            panel.fill_between(at, centre - off, centre + off, color=colour, alpha=0.2, linewidth=0)
        panel.set(xlabel="iteration (64 replies each)", ylabel=label)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def fill(readme: Path, parts: dict[str, str]) -> None:
    """Put each part between its marks; the words around them are written by hand."""
    text = readme.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name}: written by run.py -->", f"<!-- end of {name} -->"
        head, rest = text.split(begin)
        _, tail = rest.split(end)
        text = f"{head}{begin}\n\n{part}\n\n{end}{tail}"
    readme.write_text(text, encoding="utf-8")
