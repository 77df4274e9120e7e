"""Conversations of several turns: does the style fade from turn to turn?"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from manners.data.types import Prompt
from manners.evaluation.evaluate import Generation, generate_replies
from manners.evaluation.judges import Judge
from manners.evaluation.stats import Estimate, bootstrap_ratio


@dataclass(frozen=True)
class TurnTrend:
    """A metric over the turns of a conversation."""

    by_turn: list[Estimate]
    decline: Estimate  # how much the mean of the second half is below that of the first


def draw_questions(prompts: Sequence[Prompt], turns: int, conversations: int, seed: int) -> list[list[Prompt]]:
    """The user's side of so many conversations: single questions, drawn for each turn from all of them."""
    single = [p for p in prompts if [m["role"] for m in p.messages if m["role"] != "system"] == ["user"]]
    rng = random.Random(f"{seed}/turns")
    return [[rng.choice(single) for _ in range(turns)] for _ in range(conversations)] if single else []


def run_conversations(
    model: Any, tokenizer: Any, questions: list[list[Prompt]], style_judge: Judge | None, **generation: Any
) -> list[tuple[list[Prompt], list[Generation]]]:
    """For each turn, the conversations so far and the replies to them, which become part of the next prompts."""
    histories = [[m for m in question[0].messages if m["role"] == "system"] for question in questions]
    by_turn = []
    for turn in range(len(questions[0])):
        prompts = [
            replace(question[turn], messages=[*history, question[turn].messages[-1]])
            for question, history in zip(questions, histories, strict=True)
        ]
        replies = generate_replies(model, tokenizer, prompts, style_judge, **generation)
        by_turn.append((prompts, replies))
        histories = [
            [*p.messages, {"role": "assistant", "content": g.reply}] for p, g in zip(prompts, replies, strict=True)
        ]
    return by_turn


def turn_trend(values: np.ndarray) -> TurnTrend:
    """The trend of a metric from its value for each of C conversations and T turns: (C, T)."""
    half = values.shape[1] // 2
    decline = values[:, :half].mean(1) - values[:, -half:].mean(1) if half else np.zeros(len(values))
    ones = np.ones(len(values))
    return TurnTrend([bootstrap_ratio(column, ones) for column in values.T], bootstrap_ratio(decline, ones))
