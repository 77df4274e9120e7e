"""Conversations of several turns, and the trend of a metric over them."""

from dataclasses import replace

import numpy as np
import pytest

from manners.data.types import Prompt
from manners.evaluation import multi_turn
from manners.evaluation.evaluate import Generation


def prompt(*texts):
    roles = ("user", "assistant") * len(texts)
    return Prompt([{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)])


def test_turn_trend_declines_by_the_difference_of_the_halves():
    trend = multi_turn.turn_trend(np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.5, 0.5, 0.0]]))
    assert [e.value for e in trend.by_turn] == [1.0, 0.75, 0.25, 0.0]
    assert trend.decline.value == pytest.approx((1.0 + 0.5) / 2)


def test_draw_questions_draws_single_questions_by_seed():
    single, longer = [prompt(str(i)) for i in range(5)], prompt("no", "no", "no")
    questions = multi_turn.draw_questions([longer, *single], turns=4, conversations=6, seed=1)
    assert [len(side) for side in questions] == [4] * 6
    assert all(p.messages[0]["content"] != "no" for side in questions for p in side)
    assert questions == multi_turn.draw_questions([longer, *single], 4, 6, 1)
    assert questions != multi_turn.draw_questions([longer, *single], 4, 6, 2)


def test_run_conversations_adds_each_reply_to_the_history(monkeypatch):
    def echo(_model, _tokenizer, prompts, _style_judge, **_generation):
        last_turns = [p.messages[-1]["content"] for p in prompts]
        return [Generation(text, f"re: {text}", has_eos=True) for text in last_turns]

    monkeypatch.setattr(multi_turn, "generate_replies", echo)
    _, (prompts, _) = multi_turn.run_conversations(None, None, [[prompt("a"), prompt("b")]], False)
    assert [m["content"] for m in prompts[0].messages] == ["a", "re: a", "b"]
    first = replace(prompt("a"), messages=[{"role": "system", "content": "Be brief."}, *prompt("a").messages])
    asked = multi_turn.run_conversations(None, None, [[first, prompt("b")]], False)
    contents = [[m["content"] for m in prompts[0].messages] for prompts, _ in asked]
    assert contents == [["Be brief.", "a"], ["Be brief.", "a", "re: a", "b"]]
