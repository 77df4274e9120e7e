"""The curves as a table and a figure."""

from pathlib import Path
from statistics import mean, stdev

KL_COEF = 0.05  # the default of both sides
LAST = 5  # iterations at the end that are compared: one alone is noisy
LABELS = {"ours": "ours", "peer": "TRL 1.12"}
COLOURS = {"ours": "#1c7ed6", "peer": "#e8590c"}
BEGIN, END = "<!-- curves: written by curves.py -->", "<!-- end of curves -->"


def goal(run: dict) -> float:
    """What PPO maximises, at the end of the run: the score less the price of the KL."""
    return mean(run["score"][-LAST:]) - KL_COEF * mean(run["kl"][-LAST:])


def setting(found: dict) -> str:
    """Machine, versions and date in a sentence."""
    ours, peer = (", ".join(f"{n} {v}" for n, v in found["versions"][side].items()) for side in ("ours", "peer"))
    return (
        f"{found['date']}, {found['processor']}, {found['cores']} cores, {found['memory_gb']} GB, {found['system']}, "
        f"Python {found['python']}, one thread a process. Ours: commit {found['commit']}, {ours}. Theirs: {peer}."
    )


def chosen(found: dict, role: str) -> list[dict]:
    """A side's runs at its best learning rate."""
    return [r for r in found["runs"] if r["role"] == role and r["rate"] == found["best"][role]]


def told(found: dict) -> str:
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


def fill(readme: Path, part: str) -> None:
    """Put it between its marks; the words around them are written by hand."""
    head, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    _, tail = rest.split(END)
    readme.write_text(f"{head}{BEGIN}\n\n{part}\n\n{END}{tail}", encoding="utf-8")
