"""What a sweep varies: read from the command line and from ``sweep.space``, in Hydra's one grammar for both.

``1,2,3`` and ``choice(a, b)`` and ``range(1, 9)`` list values; ``interval(0.1, 1)`` is for a search, as is
``int(interval(1, 9))``, and ``tag(log, interval(1e-5, 1e-3))`` by orders of magnitude. A mapping of
``from: choice(4, 16)`` and ``when: adapter=lora`` adds a condition.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from manners.errors import MannersError

Choice = dict[str, str]  # a job: what is varied → its value, as it would be typed


@dataclass(frozen=True)
class Dimension:
    key: str
    values: tuple[str, ...]  # of an interval, its two ends
    interval: bool = False
    log: bool = False
    whole: bool = False  # whole numbers
    when: tuple[str, str] | None = None  # it exists only where this key has this value


def parse_arguments(arguments: list[str]) -> list[Override]:
    return parser().parse_overrides(arguments)


def parser() -> OverridesParser:
    return OverridesParser.create(GlobalHydra.instance().config_loader())  # which knows what a glob(*) matches


def read_space(arguments: list[Override], space: Any) -> tuple[list[str], list[Dimension]]:
    """The overrides that all jobs share, and what they differ in; the command line's values go before ``space``'s."""
    fixed: list[str] = []
    found: dict[str, Dimension] = {}
    for override in arguments:
        if override.is_sweep_override():
            found[str(override.get_key_element())] = make_dimension(override, None)
        else:
            fixed.append(override.input_line or "")
    said = {line.lstrip("+~").split("=")[0] for line in fixed} | found.keys()
    for key, given in space.items():
        planned = conditional(str(key), given)
        if key in found:
            found[str(key)] = replace(found[str(key)], when=planned.when)
        elif key not in said:
            found[str(key)] = planned
    return fixed, list(found.values())


def conditional(key: str, given: Any) -> Dimension:
    mapping = hasattr(given, "keys")
    values, when = (given.get("from"), given.get("when")) if mapping else (given, None)
    if mapping and (values is None or given.keys() - {"from", "when"}):
        raise MannersError(
            f"sweep.space.{key}: a mapping has a line 'from: choice(1, 2)' and, if need be, 'when: KEY=VALUE'."
        )
    if when is not None and "=" not in str(when):
        raise MannersError(f"sweep.space.{key}: when={when} must be KEY=VALUE, such as 'adapter=lora'.")
    override = parser().parse_override(f"{key}={values}")
    if not override.is_sweep_override():
        raise MannersError(
            f"sweep.space.{key}={values} is one value: list several, choice(1, 2), or give an interval(0.1, 1)."
        )
    condition = str(when).split("=", 1) if when else None
    return make_dimension(override, (condition[0].strip(), condition[1].strip()) if condition else None)


def make_dimension(override: Override, when: tuple[str, str] | None) -> Dimension:
    key, value = str(override.get_key_element()), override.value()
    if isinstance(value, IntervalSweep):
        ends = (value.start, value.end)
        if ends[0] is None or ends[1] is None or not ends[0] < ends[1]:
            raise MannersError(f"{override.input_line}: an interval goes from a smaller to a larger number.", key)
        log = "log" in value.tags
        if log and ends[0] <= 0:
            raise MannersError(f"{override.input_line}: by orders of magnitude it must start above 0.", key)
        whole = all(isinstance(end, int) for end in ends)
        return Dimension(key, (str(ends[0]), str(ends[1])), interval=True, log=log, whole=whole, when=when)
    values = tuple(override.sweep_string_iterator())
    if not values:
        raise MannersError(f"{override.input_line} matches nothing: no job would run.", key)
    return Dimension(key, values, when=when)


def expand_grid(dimensions: list[Dimension], given: Choice) -> list[Choice]:
    """Every combination once, the last dimension varying fastest. ``given`` is what conditions may ask of the rest."""
    for d in dimensions:
        if d.interval:
            raise MannersError(
                f"{d.key} is an interval, which a grid cannot list: a search can, sweep=search, or list values.", d.key
            )
    found: list[Choice] = []
    for values in product(*(d.values for d in dimensions)):
        whole = dict(zip((d.key for d in dimensions), values, strict=True))
        kept = {d.key: whole[d.key] for d in dimensions if condition_holds(d, given | whole)}
        if kept not in found:
            found.append(kept)
    return found


def condition_holds(d: Dimension, known: Choice) -> bool:
    return d.when is None or known.get(d.when[0]) == d.when[1]


def each_value_once(dimensions: list[Dimension]) -> Iterator[Choice]:
    """Each value (of an interval, its ends) beside the others' first: what a check has to look at."""
    first = {d.key: d.values[0] for d in dimensions if d.when is None}
    yield first
    for d in dimensions:
        condition = {d.when[0]: d.when[1]} if d.when else {}
        for value in d.values[0 if d.when else 1 :]:
            yield first | condition | {d.key: value}


def choice_overrides(choice: Choice) -> list[str]:
    return [f"{key}={value}" for key, value in choice.items()]
