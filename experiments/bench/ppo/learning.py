"""The curves as a table and a figure."""

from pathlib import Path
from statistics import mean, stdev

KL_COEF = 0.05  # the default of both sides
LAST = 5  # iterations at the end that are averaged, because a single one is noisy
LABELS = {"ours": "ours", "peer": "TRL 1.12"}
COLOURS = {"ours": "#1c7ed6", "peer": "#e8590c"}
BEGIN, END = "<!-- curves: written by curves.py -->", "<!-- end of curves -->"


def objective(run: dict) -> float:
    """What PPO maximizes: the score minus the KL penalty, at the end of the run."""
    return mean(run["score"][-LAST:]) - KL_COEF * mean(run["kl"][-LAST:])


def environment(results: dict) -> str:
    """Machine, versions and date in a sentence."""
    ours, peer = (", ".join(f"{n} {v}" for n, v in results["versions"][side].items()) for side in ("ours", "peer"))
    return (
        f"{results['date']}, {results['processor']}, {results['cores']} cores, {results['memory_gb']} GB, "
        f"{results['system']}, Python {results['python']}, one thread per process. "
        f"Ours: commit {results['commit']}, {ours}. Theirs: {peer}."
    )


def best_runs(results: dict, role: str) -> list[dict]:
    """The runs of a side at its best learning rate."""
    return [r for r in results["runs"] if r["role"] == role and r["rate"] == results["best"][role]]


def table(results: dict) -> str:
    """Markdown: the environment, and score and KL at the end of the runs of both sides."""
    lines = [
        environment(results),
        f"\nMeans over the last {LAST} iterations: mean ± standard deviation over the seeds.\n",
        "| | learning rate | score | KL, nats per reply | score − 0.05 KL | command |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for role in ("ours", "peer"):
        runs = best_runs(results, role)
        score, kl = ([mean(r[key][-LAST:]) for r in runs] for key in ("score", "kl"))
        numbers = " | ".join(mean_and_std(values) for values in (score, kl, [objective(r) for r in runs]))
        lines.append(f"| {LABELS[role]} | {results['best'][role]} | {numbers} | `{runs[0]['command']}` |")
    tried = [
        f"{LABELS[r['role']]} {r['rate']}: {objective(r):+.3f}"
        for r in results["runs"]
        if r["seed"] == first_seed(results)
    ]
    lines.append(f"\nScore − 0.05 KL of the rates tried, first seed: {'; '.join(tried)}.")
    lines.append("\n![score and KL over the iterations, ours and TRL's](curves.png)")
    return "\n".join(lines)


def first_seed(results: dict) -> int:
    return min(r["seed"] for r in results["runs"])


def mean_and_std(values: list[float]) -> str:
    return f"{mean(values):+.3f} ± {stdev(values) if len(values) > 1 else 0.0:.3f}"


def draw(results: dict, out: Path) -> None:
    """Score and KL over the iterations, mean and one standard deviation over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, (key, label) in zip(axes, [("score", "score per reply"), ("kl", "KL, nats per reply")], strict=True):
        for role, colour in COLOURS.items():
            runs = best_runs(results, role)
            values = np.array([r[key] for r in runs])  # (seeds, iterations)
            x, center = np.arange(1, values.shape[1] + 1), values.mean(0)
            std = values.std(0, ddof=1) if len(runs) > 1 else 0 * center
            name = f"{LABELS[role]}, learning rate {results['best'][role]}, {len(runs)} seeds"
            panel.plot(x, center, color=colour, label=name)
            panel.fill_between(x, center - std, center + std, color=colour, alpha=0.2, linewidth=0)
        panel.set(xlabel="iteration (64 replies each)", ylabel=label)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def update_readme(readme: Path, section: str) -> None:
    """Replace the text between the markers; the rest is written by hand."""
    head, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    _, tail = rest.split(END)
    readme.write_text(f"{head}{BEGIN}\n\n{section}\n\n{END}{tail}", encoding="utf-8")
