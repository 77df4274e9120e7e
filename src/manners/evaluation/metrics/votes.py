"""What people's votes on pairs of replies say: win rates, strengths of several models, agreement of annotators."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from manners.data.formats.votes import Vote
from manners.evaluation.stats import Estimate, bootstrap_estimate, rate, resamples_of_clusters

COMPARED = {"first": (1.0, 0.0), "second": (0.0, 1.0), "tie": (0.5, 0.5), "both_bad": (0.5, 0.5)}
MARGIN = 0.05  # the half-width of a win rate's interval that ``votes_left`` is about
Scores = tuple[np.ndarray, np.ndarray]  # of each of N votes: what the second model got (1, 0.5 or 0), and its prompt


@dataclass(frozen=True)
class Comparison:
    """Two models: how often the second is preferred to the first."""

    models: tuple[str, str]
    wins: int
    ties: int
    losses: int
    win_rate: Estimate  # ties count half; the interval is over prompts
    length_controlled: Estimate | None  # had both replies been of one length; None where lengths say nothing
    votes_left: int  # about so many more until the interval is ±5 points

    @property
    def votes(self) -> int:
        return self.wins + self.ties + self.losses


@dataclass(frozen=True)
class VoteResults:
    comparisons: list[Comparison] = field(default_factory=list)
    strengths: dict[str, Estimate] = field(default_factory=dict)  # by Bradley-Terry, of three models or more
    agreement: float | None = None  # Krippendorff's α; None where no pair was judged twice
    judged_twice: int = 0  # pairs that two annotators or more judged
    annotators: dict[str, int] = field(default_factory=dict)  # and how many votes each gave
    others: dict[str, int] = field(default_factory=dict)  # votes that compare nothing, by verdict

    def metrics(self) -> dict[str, float]:
        """The values for MLflow, by name: models are named by their place where there are several pairs."""
        found = {"votes": float(sum(c.votes for c in self.comparisons))}
        for number, c in enumerate(self.comparisons, 1):
            name = "win_rate" if len(self.comparisons) == 1 else f"win_rate_{number}"
            ends = {"": c.win_rate.value, "_low": c.win_rate.low, "_high": c.win_rate.high}
            found |= {f"{name}{end}": value for end, value in ends.items()}
            if c.length_controlled:
                found[f"{name}_length_controlled"] = c.length_controlled.value
        return found if self.agreement is None else found | {"agreement": self.agreement}


def vote_results(votes: Iterable[Vote]) -> VoteResults:
    """All that ``votes`` say of the models whose replies they compare. Two samples of one model are not compared.

    Whoever votes twice on a pair of replies counts by the last vote. Votes without a name may be of several people.
    """
    one_each: dict[object, Vote] = {}
    for number, vote in enumerate(votes):
        named = vote.annotator and vote.verdict in COMPARED
        one_each[(vote.annotator, *sorted(vote.models), *pair_key(vote)) if named else number] = vote
    votes = list(one_each.values())
    pairs: dict[tuple[str, str], list[Vote]] = defaultdict(list)
    for vote in votes:
        if vote.verdict in COMPARED and len(set(vote.models)) == 2:
            first, second = sorted(vote.models)
            pairs[first, second].append(vote)
    compared = [vote for of_pair in pairs.values() for vote in of_pair]
    units = units_of(vote for vote in votes if vote.verdict in COMPARED)
    return VoteResults(
        [compare(models, of_pair) for models, of_pair in sorted(pairs.items())],
        bradley_terry(compared) if len({m for pair in pairs for m in pair}) > 2 else {},
        krippendorff_alpha(units),
        sum(len(unit) > 1 for unit in units),
        dict(Counter(vote.annotator for vote in votes)),
        dict(Counter(vote.verdict for vote in votes if vote.verdict not in COMPARED)),
    )


def compare(models: tuple[str, str], votes: Sequence[Vote]) -> Comparison:
    """The second of ``models`` against the first."""
    scores = np.array([COMPARED[v.verdict][v.models.index(models[1])] for v in votes])
    prompts = prompt_numbers(votes)
    lengths = [[len(v.replies[v.models.index(model)].split()) for model in models] for v in votes]
    estimate = win_rate(scores, prompts)
    half = (estimate.high - estimate.low) / 2
    return Comparison(
        models,
        int((scores == 1).sum()),
        int((scores == 0.5).sum()),
        int((scores == 0).sum()),
        estimate,
        length_controlled_win_rate(scores, np.diff(lengths, axis=1)[:, 0], prompts),
        max(0, math.ceil(len(votes) * ((half / MARGIN) ** 2 - 1))),
    )


def prompt_numbers(votes: Sequence[Vote]) -> np.ndarray:
    """A number for each of N votes, (N,), the same for votes on one prompt."""
    return np.unique([json.dumps(vote.prompt) for vote in votes], return_inverse=True)[1]


def win_rate(scores: np.ndarray, prompts: np.ndarray) -> Estimate:
    """The mean of ``scores`` (N,) of 1, 0.5 and 0, over their ``prompts`` (N,).

    Each vote is two half votes that agree, or in a tie do not, so that the interval is Wilson's with the votes on a
    prompt as one cluster, and has a width even where one model won all of them.
    """
    return rate(np.concatenate([scores > 0, scores > 0.5]), np.concatenate([prompts, prompts]))


def length_controlled_win_rate(scores: np.ndarray, longer: np.ndarray, prompts: np.ndarray) -> Estimate | None:
    """The win rate had both replies been of one length: Dubois et al. 2024 (arXiv 2404.04475), section 3.

    A logistic regression of ``scores`` (N,) on tanh of the difference in words, ``longer`` (N,), by its deviation: the
    win rate is what it gives at no difference. A normal prior of variance 1 keeps the weight of the length finite, and
    its interval is by bootstrap over ``prompts`` (N,). None where all scores, or all differences, are the same.
    """
    if len(set(scores)) < 2 or len(set(longer)) < 2:
        return None
    x = np.tanh(longer / longer.std())
    weights = resamples_of_clusters(prompts)
    return bootstrap_estimate(np.array([1 / (1 + math.exp(-logistic(scores, x, w)[0])) for w in weights]))


def logistic(scores: np.ndarray, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Intercept and slope (2,) of log-odds, by Newton's method: scores, x and weights are (N,).

    Both have a normal prior, of variance 100 and 1: without one a resample in which one model always wins has none.
    """
    design, prior, beta = np.stack([np.ones_like(x), x], 1), np.array([0.01, 1.0]), np.zeros(2)
    for _ in range(25):
        p = 1 / (1 + np.exp(-design @ beta))
        gradient = design.T @ (weights * (scores - p)) - prior * beta
        hessian = (design * (weights * p * (1 - p))[:, None]).T @ design + np.diag(prior)
        step = np.linalg.solve(hessian, gradient)
        beta = beta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return beta


def bradley_terry(votes: Sequence[Vote]) -> dict[str, Estimate]:
    """The strength of each model as log-odds of winning, with mean 0: Bradley and Terry 1952; best first.

    A tie is half a win for both. Half a vote each way between any two models keeps an unbeaten one finite. Intervals
    are by bootstrap over prompts.
    """
    models = sorted({model for vote in votes for model in vote.models})
    first, second = np.array([[models.index(m) for m in vote.models] for vote in votes]).T
    scores = np.array([COMPARED[vote.verdict] for vote in votes])  # (N, 2)
    samples = []
    for weights in resamples_of_clusters(prompt_numbers(votes)):
        wins = 0.5 * (1 - np.eye(len(models)))  # wins[i, j]: of i over j
        np.add.at(wins, (first, second), weights * scores[:, 0])
        np.add.at(wins, (second, first), weights * scores[:, 1])
        samples.append(fit_strengths(wins))
    estimates = {model: bootstrap_estimate(np.array(samples)[:, i]) for i, model in enumerate(models)}
    found = {model: estimate for model, estimate in estimates.items() if estimate}
    return dict(sorted(found.items(), key=lambda item: -item[1].value))


def fit_strengths(wins: np.ndarray) -> np.ndarray:
    """Log-strengths (M,) with mean 0 of ``wins`` (M, M), by the iteration of Hunter 2004, equation 3."""
    games, strengths = wins + wins.T, np.ones(len(wins))
    for _ in range(1000):
        updated = wins.sum(1) / (games / (strengths[:, None] + strengths[None, :])).sum(1)
        updated = updated / math.exp(np.log(updated).mean())
        if np.abs(np.log(updated / strengths)).max() < 1e-9:
            break
        strengths = updated
    return np.log(updated)


def units_of(votes: Iterable[Vote]) -> list[list[str]]:
    """For each pair of replies to a prompt, what each annotator said of it: the better reply, "tie" or "both_bad"."""
    units: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for vote in votes:
        replies = sorted(vote.replies)
        preferred = {"first": vote.replies[0], "second": vote.replies[-1]}.get(vote.verdict)
        value = vote.verdict if preferred is None else f"reply {replies.index(preferred)}"
        units[pair_key(vote)][vote.annotator] = value
    return [list(values.values()) for values in units.values()]


def pair_key(vote: Vote) -> tuple[str, str]:
    """The prompt, and the replies to it in either order."""
    return json.dumps(vote.prompt), json.dumps(sorted(vote.replies))


def krippendorff_alpha(units: Iterable[Sequence[str]]) -> float | None:
    """Krippendorff's α of nominal values (2019, Content Analysis, section 12.3): 1 is full agreement, 0 is chance.

    Each unit has the values of its annotators; those with one value say nothing. None without any other, or where all
    values are the same, so that chance would agree as well.
    """
    coincidences: Counter[tuple[str, str]] = Counter()
    for values in units:
        for i, j in combinations(range(len(values)), 2):
            for pair in ((values[i], values[j]), (values[j], values[i])):
                coincidences[pair] += 1 / (len(values) - 1)  # type: ignore[assignment]  # a sum of fractions
    totals: Counter[str] = Counter()
    for (value, _), count in coincidences.items():
        totals[value] += count
    n = sum(totals.values())
    by_chance = n**2 - sum(count**2 for count in totals.values())
    if not by_chance:
        return None
    disagreement = sum(count for (a, b), count in coincidences.items() if a != b)
    return float(1 - (n - 1) * disagreement / by_chance)


def results_markdown(results: VoteResults, name: Callable[[str], str] = str) -> str:
    """The results as Markdown, with models by ``name``."""
    lines = []
    if results.comparisons:
        lines += [
            "| model | against | wins | ties | losses | win rate | length-controlled | votes left for ± 5 points |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
    for c in results.comparisons:
        controlled = c.length_controlled.percent() if c.length_controlled else ""
        counts = f"{c.wins} | {c.ties} | {c.losses} | {c.win_rate.percent()} | {controlled} | {c.votes_left}"
        lines.append(f"| {name(c.models[1])} | {name(c.models[0])} | {counts} |")
    if results.strengths:
        lines += ["", "| model | Bradley-Terry, log-odds |", "| --- | --- |"]
        lines += [f"| {name(m)} | {e.value:+.2f} [{e.low:+.2f}, {e.high:+.2f}] |" for m, e in results.strengths.items()]
    if results.agreement is not None:
        twice = f"{results.judged_twice} pairs by two or more"
        lines += ["", f"agreement of annotators, Krippendorff's α: {results.agreement:.2f} ({twice})"]
    others = ", ".join(f"{count} {verdict}" for verdict, count in results.others.items())
    by = ", ".join(f"{annotator or '(no name)'} {count}" for annotator, count in results.annotators.items())
    return "\n".join(
        [*lines, *([f"\nvotes by {by}"] if by else []), *([f"other verdicts: {others}"] if others else [])]
    )
