"""What PPO is paid for: a weighted sum of functions with TRL's signature, each of them logged by itself.

``reward_func(prompts, completions, **columns) -> list[float]``: prompts are lists of messages, completions lists of
one assistant message, and the columns hold the rows' other fields, ``completion_ids`` and ``ended``, one value a reply.
All are passed by name, as TRL does, so that a function may take only those that it needs.
"""

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pkgutil import resolve_name
from typing import Any

from manners.data.types import Prompt
from manners.errors import MannersError

RewardFunc = Callable[..., Sequence[float]]


@dataclass(frozen=True)
class RewardComponent:
    weight: float
    function: RewardFunc


def build_components(spec: Mapping[str, Mapping[str, Any]], model: RewardFunc | None) -> dict[str, RewardComponent]:
    """The parts that a config names: ``{name: {weight: 1.0, _target_: package.module.function, **kwargs}}``.

    The part ``model`` is the trained reward model; without a ``_target_`` of its own it is ``model``.
    """
    parts = {}
    for name, entry in spec.items():
        options = dict(entry)
        weight, target = float(options.pop("weight", 1.0)), options.pop("_target_", None)
        if not math.isfinite(weight):
            raise MannersError(f"method.rewards.{name}.weight={weight} must be a number.")
        function = find_function(name, target) if target else model
        if function is None:
            raise MannersError(
                f"method.rewards.{name} names no function, and there is no reward model (reward_from=none): give it one, "
                f"method.rewards.{name}._target_=package.module.function, or set reward_from=auto."
            )
        parts[name] = RewardComponent(weight, partial(function, **options) if options else function)
    if not parts:
        raise MannersError("there is nothing to reward: method.rewards names no part.")
    return parts


def find_function(name: str, target: str) -> RewardFunc:
    """The function that ``target`` names, in an installed package or a module where the command was typed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function = resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise MannersError(f"method.rewards.{name}._target_={target} cannot be found: {error}.") from None
    if not callable(function):
        raise MannersError(f"method.rewards.{name}._target_={target} is no function.")
    return function  # type: ignore[no-any-return]


def combine_rewards(
    parts: Mapping[str, RewardComponent],
    prompts: Sequence[Prompt],
    replies: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    ended: Sequence[bool],
) -> tuple[list[float], dict[str, list[float]]]:
    """The weighted sum for each reply, and what each part gave."""
    columns: dict[str, list[Any]] = {key: [p.metadata.get(key) for p in prompts] for key in prompts[0].metadata}
    columns |= {"completion_ids": [list(ids) for ids in completion_ids], "ended": list(ended)}
    asked = [p.messages for p in prompts]
    completions = [[{"role": "assistant", "content": reply}] for reply in replies]
    found: dict[str, list[float]] = {}
    for name, part in parts.items():
        values = [float(v) for v in part.function(prompts=asked, completions=completions, **columns)]
        if len(values) != len(replies):
            raise MannersError(f"method.rewards.{name} gave {len(values)} scores for {len(replies)} replies.")
        bad = next((i for i, v in enumerate(values) if not math.isfinite(v)), None)
        if bad is not None:
            raise FloatingPointError(f"method.rewards.{name} gave {values[bad]} for the reply {replies[bad]!r}")
        found[name] = values
    sums = [sum(parts[name].weight * values[i] for name, values in found.items()) for i in range(len(replies))]
    return sums, found


def brevity(completions: Sequence[Any], words: int = 30, **_columns: Any) -> list[float]:
    """0 up to ``words`` words, and then −1 for each time that many again."""
    return [-max(0, len(c[0]["content"].split()) - words) / words for c in completions]


def distinct_bigrams(completions: Sequence[Any], **_columns: Any) -> list[float]:
    """The share of a reply's word pairs that it says only once: 1 for one that never repeats itself, 0 for a loop."""
    found = []
    for completion in completions:
        words = completion[0]["content"].lower().split()
        pairs = list(pairwise(words))
        found.append(len(set(pairs)) / len(pairs) if pairs else 1.0)
    return found
