"""The search space of a sweep, read from the command line and from ``sweep.space`` in Hydra's override grammar.

``1,2,3``, ``choice(a, b)`` and ``range(1, 9)`` list values. Intervals are for a search: ``interval(0.1, 1)``,
``int(interval(1, 9))``, and ``tag(log, interval(1e-5, 1e-3))`` on a logarithmic scale. A mapping of
``from: choice(4, 16)`` and ``when: adapter=lora`` adds a condition.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from manners.config.overrides import override_key
from manners.errors import MannersError

Choice = dict[str, str]  # a job: the options that vary → their values, as they would be typed


@dataclass(frozen=True)
class Dimension:
    """One option that varies."""

    key: str
    values: tuple[str, ...]  # of an interval, its two ends
    interval: bool = False
    log: bool = False
    integer: bool = False
    when: tuple[str, str] | None = None  # the dimension exists only where this key has this value


def parse_arguments(arguments: list[str]) -> list[Override]:
    """The arguments as Hydra's overrides."""
    return override_parser().parse_overrides(arguments)


def override_parser() -> OverridesParser:
    """Hydra's parser, which knows what a glob(*) matches."""
    return OverridesParser.create(GlobalHydra.instance().config_loader())


def read_space(arguments: list[Override], space: Any) -> tuple[list[str], list[Dimension]]:
    """The overrides that all jobs share, and the dimensions; the command line takes precedence over ``space``.

    Raises MannersError for a dimension that makes no sense.
    """
    fixed: list[str] = []
    dimensions: dict[str, Dimension] = {}
    for override in arguments:
        if override.is_sweep_override():
            dimensions[str(override.get_key_element())] = make_dimension(override, None)
        else:
            fixed.append(override.input_line or "")
    on_command_line = {override_key(line) for line in fixed} | dimensions.keys()
    for key, entry in space.items():
        dimension = read_dimension(str(key), entry)
        if key in dimensions:
            dimensions[str(key)] = replace(dimensions[str(key)], when=dimension.when)
        elif key not in on_command_line:
            dimensions[str(key)] = dimension
    return fixed, list(dimensions.values())


def read_dimension(key: str, entry: Any) -> Dimension:
    """One entry of ``sweep.space``. Raises MannersError where it does not vary, or its condition cannot be read."""
    is_mapping = hasattr(entry, "keys")
    values, when = (entry.get("from"), entry.get("when")) if is_mapping else (entry, None)
    if is_mapping and (values is None or entry.keys() - {"from", "when"}):
        raise MannersError(
            f"sweep.space.{key}: a mapping has a line 'from: choice(1, 2)' and, optionally, 'when: KEY=VALUE'."
        )
    if when is not None and "=" not in str(when):
        raise MannersError(f"sweep.space.{key}: when={when} must be KEY=VALUE, such as 'adapter=lora'.")
    override = override_parser().parse_override(f"{key}={values}")
    if not override.is_sweep_override():
        raise MannersError(
            f"sweep.space.{key}={values} is one value: list several, choice(1, 2), or give an interval(0.1, 1)."
        )
    condition = str(when).split("=", 1) if when else None
    return make_dimension(override, (condition[0].strip(), condition[1].strip()) if condition else None)


def make_dimension(override: Override, when: tuple[str, str] | None) -> Dimension:
    """The dimension of an override with several values. Raises MannersError for an empty or impossible one."""
    key, value = str(override.get_key_element()), override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or not low < high:
            raise MannersError(f"{override.input_line}: an interval goes from a smaller to a larger number.", key)
        log = "log" in value.tags
        if log and low <= 0:
            raise MannersError(f"{override.input_line}: on a logarithmic scale it must start above 0.", key)
        integer = isinstance(low, int) and isinstance(high, int)
        return Dimension(key, (str(low), str(high)), interval=True, log=log, integer=integer, when=when)
    values = tuple(override.sweep_string_iterator())
    if not values:
        raise MannersError(f"{override.input_line} matches nothing: no job would run.", key)
    return Dimension(key, values, when=when)


def expand_grid(dimensions: list[Dimension], fixed: Choice) -> list[Choice]:
    """Every combination once, the last dimension varying fastest. Conditions may refer to ``fixed`` too.

    Raises MannersError for an interval.
    """
    for dimension in dimensions:
        if dimension.interval:
            raise MannersError(
                f"{dimension.key} is an interval, which a grid cannot list: use sweep=search, or list values.",
                dimension.key,
            )
    choices: list[Choice] = []
    for values in product(*(d.values for d in dimensions)):
        combination = dict(zip((d.key for d in dimensions), values, strict=True))
        choice = {d.key: combination[d.key] for d in dimensions if condition_holds(d, fixed | combination)}
        if choice not in choices:
            choices.append(choice)
    return choices


def condition_holds(dimension: Dimension, known: Choice) -> bool:
    """Whether the dimension exists, given the values of other options."""
    return dimension.when is None or known.get(dimension.when[0]) == dimension.when[1]


def each_value_once(dimensions: list[Dimension]) -> Iterator[Choice]:
    """Each value (of an interval, its ends) with the first value of the other dimensions: what is to be validated."""
    first = {d.key: d.values[0] for d in dimensions if d.when is None}
    yield first
    for d in dimensions:
        condition = {d.when[0]: d.when[1]} if d.when else {}
        for value in d.values[0 if d.when else 1 :]:
            yield first | condition | {d.key: value}


def choice_overrides(choice: Choice) -> list[str]:
    """The overrides that make a choice."""
    return [f"{key}={value}" for key, value in choice.items()]
