"""The reward of a policy: a weighted sum of functions with TRL's signature, each of them logged by itself.

``reward_func(prompts, completions, **columns) -> list[float | None]``: prompts are lists of messages, completions
lists of one assistant message. The columns are the other fields of the rows, ``completion_ids`` and ``has_eos``, one
value for each completion. All are passed by name, as TRL does, so that a function may take only those that it needs,
and with them TRL's ``trainer_state``, ``log_metric(name, value)`` and ``log_extra(column, values)``. It may be async.

None and NaN abstain: the sum is over the other functions. A reply on which all abstain has the sum NaN, and is left out
of the update.
"""

import asyncio
import inspect
import json
import math
import os
import sys
import traceback
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import chdir, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.utils import get_object, instantiate

from manners.config.validate import TABLE_COLUMNS, is_metric_name
from manners.data.types import Prompt
from manners.errors import MannersError, did_you_mean

if TYPE_CHECKING:
    from transformers import TrainerState

RewardFunc = Callable[..., Any]
PASSED_ON = (MannersError, FloatingPointError, MemoryError)  # each has an answer of its own
FAILURES = (Exception, SystemExit, asyncio.CancelledError)  # one that exits would end the run as if it were done
MAX_SCORES = 100_000  # of one call: a generator may never end


@dataclass(frozen=True)
class RewardComponent:
    """One function and its weight in the sum."""

    weight: float
    function: RewardFunc


@dataclass
class RewardLog:
    """What reward functions logged of a batch: values by metric, and columns with a value for each reply."""

    metrics: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    columns: dict[str, list[Any]] = field(default_factory=dict)


def build_components(
    config: Mapping[Any, Mapping[str, Any]], reward_model: RewardFunc | None, device: str = "cpu"
) -> dict[str, RewardComponent]:
    """The components that a config names: ``{name: {weight: 1.0, _target_: package.module.function, **kwargs}}``.

    A function with an option ``device`` or ``component`` gets the run's device or its own name there, unless the config
    sets it. A component without ``_target_`` is the reward model. Raises MannersError where there is none, or no such
    function.
    """
    components = {}
    for name, entry in config.items():
        kwargs = dict(entry)
        weight = kwargs.pop("weight", 1.0)
        function = instantiate_function(str(name), kwargs, device) if "_target_" in kwargs else reward_model
        if function is None:
            raise MannersError(
                f"method.rewards.{name} names no function, and there is no reward model (reward_from=none): give it "
                f"one, method.rewards.{name}._target_=package.module.function, or set reward_from=auto."
            )
        components[str(name)] = RewardComponent(weight, function)
    if not components:
        raise MannersError("there is nothing to reward: method.rewards names no component.")
    return components


def instantiate_function(name: str, kwargs: dict[str, Any], device: str = "cpu") -> RewardFunc:
    """The function that ``_target_`` names, in an installed package or a module of the working directory.

    Of a class it is an instance. Raises MannersError where it cannot be found or made.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    target, found = kwargs["_target_"], False
    try:
        with chdir("."):
            function = get_object(target)
            found = True
            known = check_options(name, function, kwargs)
            kwargs = {k: v for k, v in (("device", device), ("component", name)) if k in known} | kwargs
            is_class = isinstance(function, type)
            return instantiate(kwargs if is_class else kwargs | {"_partial_": True})  # type: ignore[no-any-return]
    except MannersError:
        raise
    except Exception as error:  # noqa: BLE001  a module may fail in any way while it is imported
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        problem = "cannot be made" if found else "cannot be found"
        module = sys.modules.get(target.rpartition(".")[0])
        functions = [key for key, value in vars(module).items() if inspect.isroutine(value)] if module else []
        hint = f" {did_you_mean(target.rpartition('.')[2], functions)}" if functions and not found else ""
        raise MannersError(f"method.rewards.{name}._target_={target} {problem}: {reason}.{hint}") from None


def named_columns(config: Mapping[Any, Mapping[str, Any]]) -> set[str]:
    """The parameters of the functions that a config names: the columns of the rows that they read."""
    names: set[str] = set()
    for name, entry in config.items():
        if "_target_" in entry:
            function = instantiate_function(str(name), {k: v for k, v in entry.items() if k != "weight"})
            with suppress(ValueError, TypeError):  # a builtin has no signature
                names |= inspect.signature(function).parameters.keys() - entry.keys()
    return names


def check_options(name: str, function: Any, kwargs: Mapping[str, Any]) -> set[str]:
    """The names of the function's parameters, as far as it has a signature.

    Raises MannersError for an option that is none of them, which its **kwargs would swallow.
    """
    known: set[str] = set()
    with suppress(ValueError):  # a builtin has no signature
        known = set(inspect.signature(function).parameters)
        for option in kwargs.keys() - known - {"_target_", "_args_", "_partial_", "_convert_", "_recursive_"}:
            hint = did_you_mean(option, {*known, "weight"} - {"args", "kwargs"})
            raise MannersError(f"method.rewards.{name}: {kwargs['_target_']} names no option '{option}'. {hint}")
    return known


def check_required(name: str, function: RewardFunc, columns: Mapping[str, Any]) -> None:
    """Raise MannersError for a parameter without default that is neither an option of the config nor a column."""
    with suppress(ValueError, TypeError):  # a builtin has no signature
        for p in inspect.signature(function).parameters.values():
            keyword = p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            if keyword and p.default is p.empty and p.name not in columns:
                raise MannersError(
                    f"method.rewards.{name} needs '{p.name}': set +method.rewards.{name}.{p.name}=VALUE, or give the "
                    f"rows such a field. {did_you_mean(p.name, columns)}"
                )


def try_components(components: Mapping[str, RewardComponent], prompts: Sequence[Prompt]) -> None:
    """Score two placeholder replies, so that what cannot be a reward ends a run before anything is trained.

    Raises MannersError.
    """
    count = len(prompts[:2])
    replies, ids, has_eos = ["Yes.", "I do not know, but"][:count], [[1, 0], [1, 2, 3]][:count], [True, False][:count]
    try:
        combine_rewards(components, prompts[:2], replies, ids, has_eos, EndOfTraining())
    except FloatingPointError as error:
        raise MannersError(f"{error}.") from None


def combine_rewards(
    components: Mapping[str, RewardComponent],
    prompts: Sequence[Prompt],
    replies: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    has_eos: Sequence[bool],
    trainer_state: "TrainerState | EndOfTraining | None" = None,
    log: RewardLog | None = None,
) -> tuple[list[float], dict[str, list[float]]]:
    """The weighted sum for each reply, and the scores of each component; NaN where a component abstains.

    What the functions log goes to ``log``. Raises MannersError for a function that fails or returns no scores, and
    FloatingPointError for an infinite one.
    """
    keys = dict.fromkeys(key for p in prompts for key in p.metadata)
    columns = (
        {key: [p.metadata.get(key) for p in prompts] for key in keys}
        | {
            "prompts": [[dict(message) for message in p.messages] for p in prompts],  # a function may change them
            "completions": [[{"role": "assistant", "content": reply}] for reply in replies],
            "completion_ids": [list(ids) for ids in completion_ids],
            "has_eos": list(has_eos),
            "trainer_state": trainer_state or end_of_training(),
        }
        | log_functions(log or RewardLog(), [*components, *TABLE_COLUMNS], len(replies))
    )
    returned = {name: call(name, component.function, columns) for name, component in components.items()}
    if awaited := {name: value for name, value in returned.items() if inspect.isawaitable(value)}:
        returned |= event_loop().run(await_all(awaited))
    scores = {name: check_scores(name, values, replies) for name, values in returned.items()}
    sums = []
    for i in range(len(replies)):
        given = [components[name].weight * values[i] for name, values in scores.items() if not math.isnan(values[i])]
        sums.append(sum(given) if given else math.nan)
    return sums, scores


@cache
def end_of_training() -> "TrainerState":
    """The state that evaluations pass on: whatever is evaluated is scored as at the end of training."""
    from transformers import TrainerState  # imports torch

    return TrainerState(global_step=1, max_steps=1)


class EndOfTraining:
    """``end_of_training()`` for a trial, made where a function reads it: its import takes seconds."""

    def __getattr__(self, name: str) -> Any:
        return getattr(end_of_training(), name)


def log_functions(log: RewardLog, taken: Sequence[str], count: int) -> dict[str, Callable[..., None]]:
    """TRL's ``log_metric`` and ``log_extra``, which write to ``log``; columns of the table are ``taken`` already."""

    def log_metric(name: str, value: float) -> None:
        """Raises MannersError for a name or value that MLflow would refuse."""
        if not is_metric_name(name):
            raise MannersError(f"log_metric({name!r}, …): a metric's name has letters, digits and _ - . / only.")
        try:
            log.metrics[name].append(float(value))
        except (TypeError, ValueError):
            raise MannersError(f"log_metric({name!r}, {value!r}): the value must be a number.") from None

    def log_extra(column: str, values: Sequence[Any]) -> None:
        """Raises MannersError where the table has such a column, or ``values`` is not one for each reply."""
        if column in taken:
            raise MannersError(f"log_extra({column!r}, …): the table of replies has this column: choose another name.")
        if len(values) != count:
            raise MannersError(f"log_extra({column!r}, …) got {len(values)} values for {count} replies.")
        log.columns[column] = [table_value(value) for value in values]

    return {"log_metric": log_metric, "log_extra": log_extra}


def table_value(value: Any) -> Any:
    """A value as a table takes it: a number of numpy or torch as Python's own, what JSON does not have as text."""
    with suppress(AttributeError, ValueError, RuntimeError):  # an array of several numbers has no item
        value = value.item()
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value


def call(name: str, function: RewardFunc, columns: dict[str, Any]) -> Any:
    """What the function returns, an awaitable where it is async. Raises MannersError where it fails."""
    options = getattr(function, "keywords", {})  # a field of the rows may have the name of one
    columns = {key: values for key, values in columns.items() if key not in options}
    check_required(name, function, columns)
    try:
        with chdir("."):  # where a function that changes the directory must not take the run along
            return function(**columns)
    except FAILURES as error:
        raise_failure(name, error)


async def await_all(awaitables: Mapping[str, Awaitable[Any]]) -> dict[str, Any]:
    """What async functions return, which run at the same time. Raises MannersError where one fails."""

    async def result(name: str, awaitable: Awaitable[Any]) -> Any:
        try:
            return await awaitable
        except FAILURES as error:
            raise_failure(name, error)

    values = await asyncio.gather(*(result(*item) for item in awaitables.items()))
    return dict(zip(awaitables, values, strict=True))


@cache
def event_loop() -> asyncio.Runner:
    """One event loop for the whole run: what an async function keeps open belongs to its loop."""
    return asyncio.Runner()


def raise_failure(name: str, error: BaseException) -> NoReturn:
    """Raise MannersError, one sentence with the line that failed, or ``error`` itself where it has an answer."""
    if isinstance(error, PASSED_ON) or type(error).__name__ == "OutOfMemoryError":  # torch's, perhaps not imported
        raise error
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((f for f in reversed(frames) if f"{os.sep}hydra{os.sep}" not in f.filename), frames[-1])
    hint = " A reward function takes **kwargs, as in TRL." if "unexpected keyword argument" in str(error) else ""
    reason = " ".join(str(error).split())
    raise MannersError(
        f"method.rewards.{name} failed: {type(error).__name__}: {reason} ({frame.filename}:{frame.lineno}).{hint}"
    ) from error


def check_scores(name: str, values: Any, replies: Sequence[str]) -> list[float]:
    """One finite number for each reply, or NaN where the function abstains.

    Raises MannersError for anything else, and FloatingPointError for an infinite score.
    """
    try:
        if isinstance(values, str | bytes | Mapping | Set):
            raise TypeError
        scores = [as_score(value) for value in islice(values, MAX_SCORES)]  # of a generator, too
    except Exception:  # noqa: BLE001  whatever an object of another kind raises
        text = " ".join(repr(values).split())
        raise MannersError(
            f"method.rewards.{name} returned {text[:60]}{'…' * (len(text) > 60)}: it must return a list with one "
            "number for each completion; None abstains."
        ) from None
    if len(scores) != len(replies):
        raise MannersError(f"method.rewards.{name} gave {len(scores)} scores for {len(replies)} replies.")
    bad = next((i for i, score in enumerate(scores) if math.isinf(score)), None)
    if bad is not None:
        raise FloatingPointError(f"method.rewards.{name} gave {scores[bad]} for the reply {replies[bad]!r}")
    return scores


def as_score(value: Any) -> float:
    """A number of any library; None abstains. Raises TypeError for text and arrays."""
    if value is None:
        return math.nan
    if isinstance(value, str | bytes) or getattr(value, "ndim", False):
        raise TypeError
    return float(value)
