"""Groups runs that differ only in their seed into configurations, labeled by the params in which these differ."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from manners.config.schema import STARTS_FROM
from manners.report.query import Run
from manners.runtime.run_dir import WEIGHTS_KEYS

RUN_NAME = "run"  # the only key of a run without params


@dataclass(frozen=True)
class Configuration:
    label: str  # "learning_rate=0.001  r=8": the params that differ within the group; the model if there is only one
    runs: list[Run]  # the newest run of each seed, sorted by seed
    repeats: list[Run]  # older runs with the same seeds


def configuration_key(run: Run) -> dict[str, str]:
    """The params that affect the result, without the seed, and the first digits of the data's digest."""
    if not run.params:  # an evaluation has none and is a configuration of its own
        return {RUN_NAME: run.name}
    roles = STARTS_FROM.get(run.params.get("method.sample_type", ""), ())
    sources = [f"{role}_{suffix}" for role in roles for suffix in ("from", "run_overrides")]
    groups = {*WEIGHTS_KEYS, "evaluation", *sources} - {"seed"}
    key = {name: value for name, value in run.params.items() if name.partition(".")[0] in groups}
    digest = run.tags.get("manners.data_digest")
    return key | ({"data": digest[:8]} if digest else {})


def group_by_configuration(runs: Sequence[Run]) -> list[Configuration]:
    """The configurations of one method's finished runs, in the order of each one's first run."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(sorted(configuration_key(run).items()))].append(run)
    keys = [dict(key) for key in groups]
    shown = differing_params(keys) or [name for name in ("model.name", "adapter.kind") if name in keys[0]]
    return [
        Configuration(configuration_label(key, shown), *newest_by_seed(group))
        for key, group in zip(keys, groups.values(), strict=True)
    ]


def differing_params(keys: Sequence[dict[str, str]]) -> list[str]:
    """Names of the params that are not the same in all ``keys``.

    The data's digest, and options that are missing from older runs, are included only if the other params do not
    distinguish all keys.
    """
    names = sorted({name for key in keys for name in key})
    differing = [name for name in names if len({key.get(name) for key in keys}) > 1]
    main = [name for name in differing if name != "data" and len({key[name] for key in keys if name in key}) > 1]
    unique = len({tuple(key.get(name) for name in main) for key in keys}) == len(keys)
    return main if unique else differing


def configuration_label(key: dict[str, str], shown: Sequence[str]) -> str:
    """``name=value`` of each param in ``shown``; a name is cut to its last part where that is unambiguous."""
    if list(key) == [RUN_NAME]:
        return key[RUN_NAME]
    full = [name.removesuffix(".name").removesuffix(".kind") for name in shown]  # model.name is shown as model
    last = [name.rpartition(".")[2] for name in full]
    short = [part if last.count(part) == 1 else name for name, part in zip(full, last, strict=True)]
    return "  ".join(f"{label}={key.get(name, '–')}" for name, label in zip(shown, short, strict=True)) or "all runs"


def newest_by_seed(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The newest run of each seed, and the older runs, which would count a seed twice."""
    newest = {run.seed: run for run in sorted(runs, key=lambda r: r.started)}
    kept = sorted(newest.values(), key=lambda r: (len(r.seed), r.seed))
    return kept, [run for run in runs if run not in kept]
