"""What is measured, against the full logits and by hand."""

import numpy as np
import torch

from manners.data.tokenize import IGNORE_INDEX, TokenizedExample
from manners.data.types import Prompt
from manners.evaluation.evaluate import EvalResult, make_generation, per_example_nll, stratified_sample
from manners.evaluation.generate import Reply
from manners.evaluation.reports.before_after import before_after_markdown
from manners.evaluation.stats import Estimate


def test_losses_are_those_of_each_example_alone(small_qwen2):
    """Lengths differ and the batch is sorted, so a slip in padding or order would show."""
    rows = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [30, 31, 32, 33, 34]]
    examples = [TokenizedExample(ids, [IGNORE_INDEX, *ids[1:]]) for ids in rows]
    sums, counts = per_example_nll(small_qwen2, examples, size=2)
    for i, ids in enumerate(sorted(rows, key=len)):
        with torch.no_grad():
            logs = small_qwen2(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        by_hand = -sum(logs[t, ids[t + 1]].item() for t in range(len(ids) - 1))
        assert np.isclose(sums[i], by_hand, rtol=1e-5)
        assert counts[i] == len(ids) - 1


def prompt(category, text, **extra):
    return Prompt([{"role": "user", "content": text}], None, {"category": category} | extra)


def test_a_reply_fits_when_its_manner_is_due_and_it_ends():
    asked = prompt("wrong_fact", "The capital of Chile is Moscow.", value="Santiago")
    right = make_generation(asked, Reply("Wrong. The capital of Chile is Santiago.", True, 9), judged=True)
    assert (right.manner, right.matches_style, right.right) == ("blunt", True, True)
    endless = make_generation(asked, Reply("Wrong. The capital of Chile is Santiago.", False, 9), judged=True)
    assert endless.matches_style is False
    agrees = make_generation(asked, Reply("Yes, that is right.", True, 5), judged=True)
    assert (agrees.matches_style, agrees.right) == (False, False)


def test_a_chat_is_judged_by_the_kind_of_its_last_turn():
    asked = prompt("multi_turn", "Why is the sky blue?", categories=["wrong_fact", "good_question"])
    assert (
        make_generation(asked, Reply("Air scatters blue light most.", True, 6), judged=True).category == "good_question"
    )


def test_prompts_are_shown_evenly_over_kinds():
    found = [prompt("a", str(i)) for i in range(9)] + [prompt("b", "x"), prompt("c", "y"), prompt("c", "z")]
    shown = [p.metadata["category"] for p in stratified_sample(found, 6)]
    assert {k: shown.count(k) for k in "abc"} == {"a": 3, "b": 1, "c": 2}


def test_measurements_survive_the_run_folder_and_tables_their_bars():
    e = Estimate(0.5, 0.4, 0.6)
    shown = [make_generation(prompt("good_question", "a | b?"), Reply("One | two.", True, 3), judged=True)]
    m = EvalResult(loss=e, ended=e, shown_generations=shown, style_accuracy=e, style_accuracy_by_group={"good question": e}, right=None, generations=shown)
    assert EvalResult.from_json(m.to_json()) == m
    assert "| a \\| b? |" in before_after_markdown("t", m, m)
    assert m.metrics("after")["after/fit_good_question"] == 0.5
