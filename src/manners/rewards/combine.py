"""The reward of a policy: a weighted sum of functions with TRL's signature, each of them logged by itself.

``reward_func(prompts, completions, **columns) -> list[float]``: prompts are lists of messages, completions lists of one
assistant message. The columns are the other fields of the rows, ``completion_ids`` and ``has_eos``, one value for each
completion. All are passed by name, as TRL does, so that a function may take only those that it needs.
"""

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from manners.data.types import Prompt
from manners.errors import MannersError

RewardFunc = Callable[..., Sequence[float]]


@dataclass(frozen=True)
class RewardComponent:
    """One function and its weight in the sum."""

    weight: float
    function: RewardFunc


def build_components(
    config: Mapping[Any, Mapping[str, Any]], reward_model: RewardFunc | None
) -> dict[str, RewardComponent]:
    """The components that a config names: ``{name: {weight: 1.0, _target_: package.module.function, **kwargs}}``.

    A component without ``_target_`` is the reward model. Raises MannersError where there is none, or no such function.
    """
    components = {}
    for name, entry in config.items():
        kwargs = dict(entry)
        weight = float(kwargs.pop("weight", 1.0))
        if not math.isfinite(weight):
            raise MannersError(f"method.rewards.{name}.weight={weight} must be a number.")
        function = instantiate_function(str(name), kwargs) if "_target_" in kwargs else reward_model
        if function is None:
            raise MannersError(
                f"method.rewards.{name} names no function, and there is no reward model (reward_from=none): give it "
                f"one, method.rewards.{name}._target_=package.module.function, or set reward_from=auto."
            )
        components[str(name)] = RewardComponent(weight, function)
    if not components:
        raise MannersError("there is nothing to reward: method.rewards names no component.")
    return components


def instantiate_function(name: str, kwargs: dict[str, Any]) -> RewardFunc:
    """The function that ``_target_`` names, in an installed package or a module of the working directory.

    Raises MannersError where it cannot be found.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return instantiate(kwargs | {"_partial_": True})  # type: ignore[no-any-return]
    except InstantiationException as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        target = kwargs["_target_"]
        raise MannersError(f"method.rewards.{name}._target_={target} cannot be found: {reason}.") from None


def combine_rewards(
    components: Mapping[str, RewardComponent],
    prompts: Sequence[Prompt],
    replies: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    has_eos: Sequence[bool],
) -> tuple[list[float], dict[str, list[float]]]:
    """The weighted sum for each reply, and the scores of each component.

    Raises MannersError for a wrong number of scores, and FloatingPointError for one that is not finite.
    """
    columns: dict[str, list[Any]] = {key: [p.metadata.get(key) for p in prompts] for key in prompts[0].metadata}
    columns |= {"completion_ids": [list(ids) for ids in completion_ids], "has_eos": list(has_eos)}
    messages = [p.messages for p in prompts]
    completions = [[{"role": "assistant", "content": reply}] for reply in replies]
    scores: dict[str, list[float]] = {}
    for name, component in components.items():
        values = [float(v) for v in component.function(prompts=messages, completions=completions, **columns)]
        if len(values) != len(replies):
            raise MannersError(f"method.rewards.{name} gave {len(values)} scores for {len(replies)} replies.")
        bad = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
        if bad is not None:
            raise FloatingPointError(f"method.rewards.{name} gave {values[bad]} for the reply {replies[bad]!r}")
        scores[name] = values
    sums = [sum(components[name].weight * values[i] for name, values in scores.items()) for i in range(len(replies))]
    return sums, scores
