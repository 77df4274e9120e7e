"""Evaluation of a language model: losses against the full logits, verdicts on replies, the saved result."""

import json

import numpy as np
import torch

from manners.data.tokenize import IGNORE_INDEX, TokenizedExample
from manners.data.types import Prompt
from manners.evaluation.evaluate import EvalResult, make_generation, per_example_nll, stratified_sample
from manners.evaluation.generate import Reply
from manners.evaluation.reports.before_after import before_after_markdown
from manners.evaluation.stats import Estimate


def test_per_example_nll_equals_that_of_each_example_alone(small_qwen2):
    """Lengths differ and batches are sorted, so an error in padding or order would show."""
    rows = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [30, 31, 32, 33, 34]]
    examples = [TokenizedExample(ids, [IGNORE_INDEX, *ids[1:]]) for ids in rows]
    sums, counts = per_example_nll(small_qwen2, examples, batch_size=2)
    for i, ids in enumerate(sorted(rows, key=len)):
        with torch.no_grad():
            logprobs = small_qwen2(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = -sum(logprobs[t, ids[t + 1]].item() for t in range(len(ids) - 1))
        assert np.isclose(sums[i], expected, rtol=1e-5)
        assert counts[i] == len(ids) - 1


def make_prompt(category, text, **metadata):
    return Prompt([{"role": "user", "content": text}], None, {"category": category} | metadata)


def test_make_generation_needs_style_and_eos_to_match():
    prompt = make_prompt("wrong_fact", "The capital of Chile is Moscow.", value="Santiago")
    correct = make_generation(prompt, Reply("Wrong. The capital of Chile is Santiago.", True, 9), style_judge=True)
    assert (correct.style, correct.matches_style, correct.fact_correct) == ("blunt", True, True)
    without_eos = make_generation(prompt, Reply("Wrong. The capital of Chile is Santiago.", False, 9), style_judge=True)
    assert (without_eos.matches_style, without_eos.has_eos) == (False, False)
    agrees = make_generation(prompt, Reply("Yes, that is right.", True, 5), style_judge=True)
    assert (agrees.matches_style, agrees.fact_correct) == (False, False)
    unjudged = make_generation(prompt, Reply("Yes.", True, 5), style_judge=False)
    assert (unjudged.style, unjudged.matches_style, unjudged.fact_correct) == ("", None, None)


def test_make_generation_takes_the_category_of_the_last_turn():
    prompt = make_prompt("multi_turn", "Why is the sky blue?", categories=["wrong_fact", "good_question"])
    generation = make_generation(prompt, Reply("Air scatters blue light most.", True, 6), style_judge=True)
    assert generation.category == "good_question"


def test_stratified_sample_takes_categories_in_turn():
    prompts = [make_prompt("a", str(i)) for i in range(9)]
    prompts += [make_prompt("b", "x"), make_prompt("c", "y"), make_prompt("c", "z")]
    categories = [p.metadata["category"] for p in stratified_sample(prompts, 6)]
    assert categories == ["a", "a", "a", "b", "c", "c"]


def result():
    e = Estimate(0.5, 0.4, 0.6)
    reply = Reply("One | two.", True, 3)
    generations = [make_generation(make_prompt("good_question", "a | b?"), reply, style_judge=True)]
    return EvalResult(
        loss=e,
        eos_rate=e,
        shown_generations=generations,
        style_accuracy=e,
        style_accuracy_by_group={"good question": e, "rows: hand": e},
        generations=generations,
        extra_metrics={"KL to the reference, nats per reply": Estimate(2.0, 1.0, 3.0)},
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
        "after/distinct_2": 0.5,
        "after/repeated_4grams": 0.5,
    }


def test_before_after_markdown_escapes_bars_and_names_metrics():
    text = before_after_markdown("title", result(), result(), "no change")
    assert "| a \\| b? |" in text
    for name in ("style accuracy", "held-out loss, nats per token", "KL to the reference, nats per reply"):
        assert f"| {name} | " in text
