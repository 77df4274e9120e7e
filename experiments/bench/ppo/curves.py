"""How the reward grows on both sides: each at the learning rate that suits it best, over several seeds."""

import os
from concurrent.futures import ThreadPoolExecutor
from statistics import mean

import sides

KL_COEF = 0.05  # the default of both sides
# The slower one first, so that no core waits at the end. The critics have rates of their own: our head the package's
# default, TRL's one that suits a whole small network.
SIDES = {"peer": ["--value-lr", "3e-4"], "ours": []}
LAST = 5  # iterations at the end that are compared: one alone is noisy


def curves(rates: list[str], seeds: int, iterations: int, first: int) -> dict:
    """Of several rates, each is tried with the first seed; the best one of a side runs with the other seeds, too."""
    runs = []
    if len(rates) > 1:
        runs = together([(side, rate, first) for side in SIDES for rate in rates], iterations)
    best = {side: choose([run for run in runs if run["role"] == side]) if runs else rates[0] for side in SIDES}
    left = range(first + bool(runs), first + seeds)
    runs += together([(side, best[side], seed) for side in SIDES for seed in left], iterations)
    return {"kl_coef": KL_COEF, "rates": rates, "best": best, "runs": runs}


def together(jobs: list[tuple[str, str, int]], iterations: int) -> list[dict]:
    """Runs of (side, learning rate, seed), one on each core: no time is taken here."""

    def one(job: tuple[str, str, int]) -> dict:
        side, rate, seed = job
        found = sides.run(sides.command(side, iterations, seed, "--lora", "--lr", rate, *SIDES[side]))
        print(f"{side} at {rate}, seed {seed}: {goal(found):+.3f} at the end", flush=True)
        return {"role": side, "rate": rate, "seed": seed} | found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, jobs))


def goal(run: dict) -> float:
    """What PPO maximises, at the end of the run: the score less the price of the KL."""
    return mean(run["score"][-LAST:]) - KL_COEF * mean(run["kl"][-LAST:])


def choose(runs: list[dict]) -> str:
    return max(runs, key=goal)["rate"]
