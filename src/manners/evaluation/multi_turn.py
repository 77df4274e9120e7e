"""Does the manner fade? Chats of several turns, and what each turn's replies are worth."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from manners.data.types import Message, Prompt
from manners.evaluation.evaluate import Generation, generate_replies
from manners.evaluation.stats import Estimate, bootstrap_ratio

Score = Callable[[Sequence[Prompt], Sequence[Generation]], Sequence[float]]


@dataclass(frozen=True)
class TurnTrend:
    """A measure over the turns of a chat."""

    by_turn: list[Estimate]
    loss: Estimate  # how much the second half of a chat is below its first: above 0 it fades


def draw_questions(asked: Sequence[Prompt], turns: int, chats: int, seed: int) -> list[list[Prompt]]:
    """The user's side of ``chats`` chats: single questions, drawn for each turn from all of them."""
    single = [p for p in asked if [m["role"] for m in p.messages if m["role"] != "system"] == ["user"]]
    rng = random.Random(f"{seed}/turns")
    return [[rng.choice(single) for _ in range(turns)] for _ in range(chats)] if single else []


def run_conversations(
    model: Any, tokenizer: Any, sides: list[list[Prompt]], judged: bool, **settings: Any
) -> list[tuple[list[Prompt], list[Generation]]]:
    """For each turn, the chats so far and the model's answers to them, which go into the next turn's history."""
    histories: list[list[Message]] = [[] for _ in sides]
    found = []
    for turn in range(len(sides[0])):
        asked = [
            replace(side[turn], messages=[*history, side[turn].messages[-1]])
            for side, history in zip(sides, histories, strict=True)
        ]
        answers = generate_replies(model, tokenizer, asked, judged, **settings)
        found.append((asked, answers))
        histories = [
            [*p.messages, {"role": "assistant", "content": a.reply}] for p, a in zip(asked, answers, strict=True)
        ]
    return found


def turn_trend(values: np.ndarray) -> TurnTrend:
    """From a number for each chat and turn, (C, T)."""
    half = values.shape[1] // 2
    below = values[:, :half].mean(1) - values[:, -half:].mean(1) if half else np.zeros(len(values))
    ones = np.ones(len(values))
    return TurnTrend([bootstrap_ratio(column, ones) for column in values.T], bootstrap_ratio(below, ones))
