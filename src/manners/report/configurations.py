"""Runs that differ in their seed alone are one configuration; what sets it apart from its neighbours is its label."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from manners.config.schema import STARTS_FROM
from manners.report.query import Run
from manners.runtime.run_dir import WEIGHTS_KEYS

ITSELF = "run"  # the shape of what has no params


@dataclass(frozen=True)
class Configuration:
    label: str  # "learning_rate=0.001 r=8": the params that its group does not share; of one alone, its model
    runs: list[Run]  # one a seed, by seed
    repeats: list[Run]  # older runs of the same seeds


def configuration_key(run: Run) -> dict[str, str]:
    """The params that shape the result, less the seed; and the data, by the first digits of their digest."""
    roles = STARTS_FROM.get(run.params.get("method.sample_type", ""), ())
    kept = {*WEIGHTS_KEYS, "evaluation", *roles, *(f"{role}_overrides" for role in roles)} - {"seed"}
    found = {k: v for k, v in run.params.items() if k.partition(".")[0] in kept}
    if not run.params:  # an evaluation has none: it stands for itself
        return {ITSELF: run.name}
    digest = run.tags.get("manners.data_digest")
    return found | ({"data": digest[:8]} if digest else {})


def configurations(runs: Sequence[Run]) -> list[Configuration]:
    """Of finished runs of one method, in the order in which each began."""
    alike: dict[tuple[tuple[str, str], ...], list[Run]] = defaultdict(list)
    for run in runs:
        alike[tuple(sorted(configuration_key(run).items()))].append(run)
    shapes = [dict(key) for key in alike]
    shown = differing(shapes) or [key for key in ("model.name", "adapter.kind") if key in shapes[0]]
    return [
        Configuration(configuration_label(one, shown), *newest_by_seed(group))
        for one, group in zip(shapes, alike.values(), strict=True)
    ]


def differing(shapes: Sequence[dict[str, str]]) -> list[str]:
    """The params that are not the same in all ``shapes``.

    The data, and options that some runs are too old to know, are among them only where the others do not tell the
    shapes apart.
    """
    keys = sorted({key for one in shapes for key in one})
    found = [key for key in keys if len({one.get(key) for one in shapes}) > 1]
    strong = [key for key in found if key != "data" and len({one[key] for one in shapes if key in one}) > 1]
    told = len({tuple(one.get(key) for key in strong) for one in shapes}) == len(shapes)
    return strong if told else found


def configuration_label(shape: dict[str, str], shown: Sequence[str]) -> str:
    """Each by the last part of its name, where that is enough to tell which one is meant."""
    if list(shape) == [ITSELF]:
        return shape[ITSELF]
    names = [key.removesuffix(".name").removesuffix(".kind") for key in shown]  # model.name is the model
    lasts = [name.rpartition(".")[2] for name in names]
    short = [last if lasts.count(last) == 1 else name for name, last in zip(names, lasts, strict=True)]
    return "  ".join(f"{name}={shape.get(key, '–')}" for key, name in zip(shown, short, strict=True)) or "alike"


def newest_by_seed(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The newest run of each seed, and the others: the same seed again says nothing new about seeds."""
    newest = {run.seed: run for run in sorted(runs, key=lambda r: r.started)}
    first = sorted(newest.values(), key=lambda r: (len(r.seed), r.seed))
    return first, [run for run in runs if run not in first]
