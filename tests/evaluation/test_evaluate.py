"""Evaluation of a language model: losses against the full logits, verdicts on replies, the saved result."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from manners.data.tokenize import IGNORE_INDEX, TokenizedExample
from manners.data.types import Prompt
from manners.evaluation import evaluate
from manners.evaluation.evaluate import (
    COMMONEST_NAME,
    KL_NAME,
    EvalResult,
    make_generations,
    metric_key,
    per_example_nll,
    stratified_sample,
)
from manners.evaluation.generate import Reply
from manners.evaluation.judges import judge_by_rules
from manners.evaluation.reports.before_after import before_after_markdown
from manners.evaluation.stats import Estimate


def test_per_example_nll_equals_that_of_each_example_alone(small_qwen2):
    """Lengths differ and batches are sorted by them, so an error in padding or order would show."""
    rows = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [30, 31, 32, 33, 34]]
    examples = [TokenizedExample(ids, [IGNORE_INDEX, *ids[1:]]) for ids in rows]
    sums, counts = per_example_nll(small_qwen2, examples, batch_size=2)  # in the order of the examples
    for i, ids in enumerate(rows):
        with torch.no_grad():
            logprobs = small_qwen2(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = -sum(logprobs[t, ids[t + 1]].item() for t in range(len(ids) - 1))
        assert np.isclose(sums[i], expected, rtol=1e-5)
        assert counts[i] == len(ids) - 1


def make_prompt(category, text, **metadata):
    return Prompt([{"role": "user", "content": text}], None, {"category": category} | metadata)


def test_make_generation_needs_style_and_eos_to_match():
    prompt = make_prompt("wrong_fact", "The capital of Chile is Moscow.", value="Santiago")
    right = "Wrong. The capital of Chile is Santiago."
    correct = make_generations([prompt], [Reply(right, True, [], [])], judge_by_rules)[0]
    assert (correct.style, correct.matches_style, correct.fact_correct) == ("blunt", True, True)
    without_eos = make_generations([prompt], [Reply(right, False, [], [])], judge_by_rules)[0]
    assert (without_eos.matches_style, without_eos.has_eos) == (False, False)
    agrees = make_generations([prompt], [Reply("Yes, that is right.", True, [], [])], judge_by_rules)[0]
    assert (agrees.matches_style, agrees.fact_correct) == (False, False)
    unjudged = make_generations([prompt], [Reply("Yes.", True, [], [])], None)[0]
    assert (unjudged.style, unjudged.matches_style, unjudged.fact_correct) == ("", None, None)


def test_make_generation_takes_the_category_of_the_last_turn():
    prompt = make_prompt("multi_turn", "Why is the sky blue?", categories=["wrong_fact", "good_question"])
    generation = make_generations([prompt], [Reply("Air scatters blue light most.", True, [], [])], judge_by_rules)[0]
    assert generation.category == "good_question"


def test_stratified_sample_takes_categories_in_turn():
    prompts = [make_prompt("a", str(i)) for i in range(9)]
    prompts += [make_prompt("b", "x"), make_prompt("c", "y"), make_prompt("c", "z")]
    categories = [p.metadata["category"] for p in stratified_sample(prompts, 6)]
    assert categories == ["a", "a", "a", "b", "c", "c"]


def result():
    e = Estimate(0.5, 0.4, 0.6)
    reply = Reply("One | two.", True, [], [])
    generations = make_generations([make_prompt("good_question", "a | b?")], [reply], judge_by_rules)
    return EvalResult(
        loss=e,
        eos_rate=e,
        shown_generations=generations,
        style_accuracy=e,
        style_accuracy_by_group={"good question": e, "rows: hand": e},
        generations=generations,
        extra_metrics={KL_NAME: Estimate(2.0, 1.0, 3.0), f"{COMMONEST_NAME}: poor logic": e},
        text_stats={"distinct-2": e, "repeated 4grams": e},
        reference_text_stats={"distinct-2": e},
    )


def test_eval_result_json_round_trip():
    saved = json.loads(json.dumps(result().to_json()))
    assert EvalResult.from_json(saved) == result()


def test_eval_result_metric_names():
    assert result().metrics("after") == {
        "after/loss": 0.5,
        "after/eos_rate": 0.5,
        "after/style_accuracy": 0.5,
        "after/style_accuracy_good_question": 0.5,
        "after/style_accuracy_rows_hand": 0.5,
        "after/kl_to_the_reference_nats_per_reply": 2.0,
        "after/replies_with_the_commonest_sentence_poor_logic": 0.5,
        "after/distinct_2": 0.5,
        "after/repeated_4grams": 0.5,
    }


def test_before_after_markdown_escapes_bars_and_names_metrics():
    text = before_after_markdown("title", result(), result(), "no change")
    assert f"| {COMMONEST_NAME}: poor logic | 50.0 % [40.0, 60.0] |" in text
    assert "| a \\| b? |" in text
    for name in (
        "style accuracy",
        "held-out loss, nats per token",
        KL_NAME,
    ):
        assert f"| {name} | " in text


# --- One count ---


@pytest.mark.parametrize("style_judge, text_stats", [(judge_by_rules, "manner"), (None, "none"), (None, "manner")])
def test_eos_rate_counts_each_held_out_prompt_once(small_qwen2, monkeypatch, style_judge, text_stats):
    """Shown prompts are some of the others, and are not answered twice; fixed ones are not counted."""
    prompts = [make_prompt("good_question", f"{i}?") for i in range(8)]
    answered = []

    def generate_texts(_model, _tokenizer, conversations, **_):
        answered.append(len(conversations))
        texts = [c[-1]["content"] for c in conversations]
        return [Reply(f"To {text}", text in ("1?", "5?", "fixed"), [], []) for text in texts]

    monkeypatch.setattr(evaluate, "generate_texts", generate_texts)
    examples = [TokenizedExample([5, 6, 7], [IGNORE_INDEX, 6, 7])]
    for fixed in ([], [make_prompt("good_question", "fixed")]):
        measured = evaluate.evaluate(
            small_qwen2, None, prompts, fixed, examples, style_judge, text_stats, num_shown=4, max_prompts=6
        )
        assert measured.eos_rate.value == 2 / 6
        shown = [g.reply for g in measured.shown_generations]
        assert shown == (["To fixed"] if fixed else ["To 0?", "To 1?", "To 2?", "To 3?"])
        assert [r.text for r in measured.replies] == [f"To {i}?" for i in range(6)]
    assert answered == [6, 7]


@pytest.mark.parametrize(
    "name, key",
    [("replies with EOS", "eos_rate"), ("held-out loss, nats per token", "loss"), ("distinct-2", "distinct_2")],
)
def test_metric_key_is_the_name_that_runs_log(name, key):
    assert metric_key(name) == key


# --- The first line of a result ---


def near(value, width=0.02):
    return Estimate(value, value - width, value + width)


GOOD = replace(
    result(),
    loss=near(2.5),
    eos_rate=near(0.9),
    style_accuracy=near(0.5),
    fact_accuracy=near(0.8),
    extra_metrics={"NLL under the base model, nats per token": near(2.0)},
    text_stats={"repeated 4grams": near(0.1)},
)


@pytest.mark.parametrize(
    "change, worse",
    [
        ({"loss": near(8.3)}, "held-out loss, nats per token 2.50 → 8.30"),
        ({"loss": near(2.6)}, "held-out loss, nats per token 2.50 → 2.60"),
        ({"eos_rate": near(0.0)}, "replies with EOS 90.0% → 0.0%"),
        ({"style_accuracy": near(0.3)}, "style accuracy 50.0% → 30.0%"),
        ({"fact_accuracy": near(0.1)}, "fact accuracy 80.0% → 10.0%"),
        ({"text_stats": {"repeated 4grams": near(0.9)}}, "repeated 4grams 0.10 → 0.90"),
        ({"extra_metrics": {"NLL under the base model, nats per token": near(7.0)}}, "NLL under the base model"),
    ],
)
def test_headline_begins_with_what_became_worse(change, worse):
    headline = replace(GOOD, **change).headline(GOOD)
    assert headline.startswith(f"WORSE than before training: {worse}")
    assert headline.count("style accuracy 50.0% → ") == 1  # not named twice where it is what became worse
    text = before_after_markdown("title", GOOD, replace(GOOD, **change), headline)
    assert text.splitlines()[2] == f"{headline}."  # the first line below the title


@pytest.mark.parametrize(
    "change",
    [
        {"loss": near(2.53)},  # within the intervals
        {"loss": near(1.0), "eos_rate": near(1.0), "style_accuracy": near(0.9)},
        {"text_stats": {"repeated 4grams": near(0.2)}, "extra_metrics": {}},
        {"eos_rate": None, "fact_accuracy": None},
    ],
)
def test_headline_of_a_run_that_is_not_worse(change):
    assert replace(GOOD, **change).headline(GOOD).startswith("style accuracy 50.0% → ")


def test_headline_allows_rl_some_loss_on_the_data():
    """PPO and DPO may move away from the replies of the data, but not by more than a nat."""
    for rise, is_worse in ((0.3, False), (0.9, False), (1.5, True)):
        headline = replace(GOOD, loss=near(2.5 + rise)).headline(GOOD, rise_of_loss=1.0)
        assert headline.startswith("WORSE") == is_worse


def test_headline_names_the_reward_where_no_style_is_judged():
    before, after = (
        replace(GOOD, style_accuracy=None, extra_metrics={"reward": near(x), "reward of sampled replies": near(x - 1)})
        for x in (1.0, 2.5)
    )
    assert after.headline(before) == "reward 1.00 → 2.50; reward of sampled replies 0.00 → 1.50"
    loss = [replace(e, extra_metrics={}) for e in (before, after)]
    assert loss[1].headline(loss[0]) == "held-out loss, nats per token 2.500 → 2.500"


def test_one_question_for_all_arguments_is_seen():
    """A policy that asks one question of a third of the prompts, as PPO on the toy model did, and a varied one."""
    categories = ("good_question", "poor_logic", "wrong_fact")
    varied = [
        evaluate.Generation(f"{category} {i}", f"What is {category} {i}?", has_eos=True, category=category)
        for category in categories
        for i in range(30)
    ]
    same = [replace(g, reply="Did you look? " + g.reply) if g.category == "poor_logic" else g for g in varied]
    before, after = (evaluate.commonest_sentence(g, np.arange(90)) for g in (varied, same))
    logic = f"{COMMONEST_NAME}: poor logic"
    assert {name: e.value for name, e in before.items()} == {
        f"{COMMONEST_NAME}: {category.replace('_', ' ')}": 0.0 for category in categories
    }
    assert {name: e.value for name, e in after.items()} == {name: float(name == logic) for name in before}
    old, new = (replace(result(), extra_metrics=e) for e in (before, after))
    assert new.headline(old).startswith(f"WORSE than before training: {logic} 0.0% → 100.0%")
    assert COMMONEST_NAME not in old.headline(old)
    assert evaluate.commonest_sentence([], np.arange(0)) == {}
