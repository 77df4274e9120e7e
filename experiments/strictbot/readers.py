"""What readers say of PPO: python experiments/strictbot/readers.py

readers.jsonl has the greedy replies to 96 held-out prompts of the SFT policy and of PPO's, for each seed, mixed, and
scored from 0 to 1 by language models that read each reply beside a correct one and did not know where it came from
(manner, truth and sense together, as in strictbot's CARD). Printed are the mean scores, and PPO's minus SFT's on the
same prompts, for each seed and over all, with bootstrap intervals over prompts.

The first three tables are of RLOO and PPO of 1152 replies, read together with the SFT policy that they began with, and
the next three of PPO, RLOO, and PPO of 1152 replies from the same, read by others before: the defaults since 3a0f687.
The seventh is PPO at the same settings, read before with RLOO at seed 1, the eighth of the settings before ("chatml"),
all without the base's own system message. The others are of before, with it: the same; variants of PPO at seed 1, which
were read beside the SFT policy's replies once more; PPO of one epoch on another processor, with SFT policies and
readers of its own; and the means of the base's replies of 64 tokens, as it is and asked for the manners
(``dataset.prompted_baseline``). Last come policies from one light SFT policy at seed 1, read together, and its best of
16 sampled replies, for which it and PPO were read again.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from manners.evaluation.stats import Estimate, bootstrap_ratio

LABELS = Path(__file__).with_name("readers.jsonl")
VARIANTS, AGAIN = ("ppo, MiniLM", "ppo, small steps"), "sft, second reading"
FROM_ONE_START = {  # by their start, which was read beside them
    "sft, start": ("sft, start", "sft, all rows", "dpo, from start", "rloo, from start", "ppo, from start"),
    "sft, start, again": ("sft, start, again", "best of 16", "ppo, from start, again"),
}
# The commits of the settings, of their policies read together, and of RLOO of 1152 replies, read with two of these
TODAY, TOGETHER, LAST = "3a0f687", "5d4ca9f", "1ac33b5"
GOOD = 0.5  # right manner and on the subject, with a smaller flaw in sense or truth at most


def main() -> None:
    scores: dict[tuple[int, str], dict[str, float]] = defaultdict(dict)
    categories = {}
    for line in LABELS.read_text("utf-8").splitlines():
        row = json.loads(line)
        scores[row["seed"], row["model"]][row["prompt"]] = row["score"]
        categories[row["prompt"]] = row["category"]
    seeds = sorted({seed for seed, _ in scores})
    kinds = sorted(set(categories.values()))
    sft, ppo, rloo = (f"{name}, {LAST}" for name in ("sft", "ppo of 1152 replies", "rloo of 1152 replies"))
    for names in ((sft, rloo), (sft, ppo), (ppo, rloo)):
        before_and_after(scores, categories, names, seeds)
    for name in ("ppo", "rloo", "ppo of 1152 replies"):
        before_and_after(scores, categories, (f"sft, {TOGETHER}", f"{name}, {TOGETHER}"), seeds)
    together = [f"{name}, {TOGETHER}" for name in ("sft", "ppo", "rloo", "ppo of 1152 replies")]
    twice = [(scores[2, name][p], score) for name in together for p, score in scores[2, f"{name}, again"].items()]
    print(f"\n{len(twice)} of these read twice: Spearman {spearmanr(*zip(*twice, strict=True)).statistic:.2f}")
    names = {name: f"{name.partition(', ')[0]}, {TOGETHER}" for name in (sft, ppo)}
    others = [(scores[s, names[n]][p], score) for n in names for s in seeds for p, score in scores[s, n].items()]
    print(f"{len(others)} read by others before: Spearman {spearmanr(*zip(*others, strict=True)).statistic:.2f}")
    before_and_after(scores, categories, (f"sft, {TODAY}", f"ppo, {TODAY}"), seeds)
    start, rloo = [scores[1, f"sft, {TODAY}"]], [scores[1, f"rloo, {TODAY}"]]
    print(f"| 1, rloo | {average(start)} | {average(rloo)} | {plain(change(start, rloo))} | |")
    before_and_after(scores, categories, ("sft, chatml", "ppo, chatml"), seeds)
    before_and_after(scores, categories, ("sft", "ppo"), seeds)
    twice_before = [[scores[1, name][p] for p in sorted(scores[1, "sft"])] for name in ("sft", AGAIN)]
    for name in VARIANTS:  # of PPO, at seed 1
        again, variant = [scores[1, AGAIN]], [scores[1, name]]
        print(f"| 1, {name} | {average(again)} | {average(variant)} | {plain(change(again, variant))} | |")
    once = [[scores[seed, f"{model}, one epoch"] for seed in seeds] for model in ("sft", "ppo")]
    for seed, sft, ppo in zip(seeds, *once, strict=True):
        print(f"| {seed}, one epoch | {mean(sft)} | {mean(ppo)} | {plain(change([sft], [ppo]))} | |")
    print(f"| all, one epoch | {average(once[0])} | {average(once[1])} | {plain(change(*once))} | |")
    print(f"\n| replies of | all | {' | '.join(kinds)} |\n|{' --- |' * (2 + len(kinds))}")
    for name in ("base", "base, prompted", "sft", "ppo"):
        models = [scores[seed, name] for seed in seeds if (seed, name) in scores]
        print(f"| {name} | {by_category(models, categories, kinds)} |")
    print("\n| from one SFT policy | all | change, paired | good replies | " + " | ".join(kinds) + " |")
    print("| --- | --- | --- | --- |" + " --- |" * len(kinds))
    for start, name in ((start, name) for start, names in FROM_ONE_START.items() for name in names):
        model = scores[1, name]
        good = f"{sum(s >= GOOD for s in model.values())} of {len(model)}"
        total, *parts = by_category([model], categories, kinds).split(" | ")
        print(f"| {name} | {total} | {plain(change([scores[1, start]], [model]))} | {good} | {' | '.join(parts)} |")
    best, ppo = scores[1, "best of 16"], scores[1, "ppo, from start, again"]
    print(f"ppo minus best of 16: {plain(change([best], [ppo]))}")
    again = [
        (scores[1, name][p], score)
        for name in ("sft, start", "ppo, from start")
        for p, score in scores[1, f"{name}, again"].items()
    ]
    print(f"\n{len(again)} of these read twice: Spearman {spearmanr(*zip(*again, strict=True)).statistic:.2f}")
    print(f"{len(twice_before[0])} with the system message read twice: ", end="")
    print(f"Spearman {spearmanr(*twice_before).statistic:.2f}")


def before_and_after(
    scores: dict[tuple[int, str], dict[str, float]],
    categories: dict[str, str],
    names: tuple[str, str],
    seeds: list[int],
) -> None:
    """Print a table of two models, by seed, over all seeds, and of each category over all seeds."""
    print(f"\n| seed | {names[0]} | {names[1]} | change, paired | good replies |\n| --- | --- | --- | --- | --- |")
    seeds = [seed for seed in seeds if (seed, names[1]) in scores]
    for seed in seeds:
        old, new = scores[seed, names[0]], scores[seed, names[1]]
        counts = " → ".join(str(sum(s >= GOOD for s in model.values())) for model in (old, new))
        print(f"| {seed} | {mean(old)} | {mean(new)} | {plain(change([old], [new]))} | {counts} of {len(old)} |")
    olds, news = ([scores[seed, name] for seed in seeds] for name in names)
    print(f"| all | {average(olds)} | {average(news)} | {plain(change(olds, news))} | |")
    for category in sorted(set(categories.values())):
        part = [[{p: s for p, s in d.items() if categories[p] == category} for d in model] for model in (olds, news)]
        print(f"| all, {category} | {average(part[0])} | {average(part[1])} | {plain(change(*part))} | |")


def by_category(models: list[dict[str, float]], categories: dict[str, str], kinds: list[str]) -> str:
    parts = ([{p: s for p, s in scores.items() if categories[p] == kind} for scores in models] for kind in kinds)
    return " | ".join([average(models), *map(average, parts)])


def mean(scores: dict[str, float]) -> str:
    return average([scores])


def average(models: list[dict[str, float]]) -> str:
    return f"{np.mean([s for scores in models for s in scores.values()]):.3f}"


def change(before: list[dict[str, float]], after: list[dict[str, float]]) -> Estimate:
    """The mean over prompts of the mean over seeds of the difference."""
    prompts = sorted(set.intersection(*(set(scores) for scores in (*before, *after))))
    pairs = zip(before, after, strict=True)
    differences = np.mean([[new[p] - old[p] for p in prompts] for old, new in pairs], axis=0)
    return bootstrap_ratio(differences, np.ones(len(prompts)))


def plain(e: Estimate) -> str:
    return f"{e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]"


if __name__ == "__main__":
    main()
