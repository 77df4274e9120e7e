"""A judge's errors on labeled replies, and rates corrected for them, against simulations."""

import json

import numpy as np
import pytest

from manners.data.sources import CORPORA
from manners.errors import MannersError
from manners.evaluation.judges import JudgedReply, judge_by_rules, learned_verdict
from manners.evaluation.judges.errors import JudgeErrors, LabeledReply, measure_errors, read_labels

LABELS = CORPORA / "judged_replies" / "judged_replies.jsonl"


def test_perfect_judge_needs_no_correction():
    errors = JudgeErrors(found=1000, fitting=1000, rejected=1000, others=1000)
    assert errors.corrected(30, 100).value == pytest.approx(0.3)


def test_corrected_rate_solves_for_the_true_one():
    # 40 of 100 fit: the judge passes 0.9 * 40 + 0.2 * 60 = 48
    errors = JudgeErrors(found=90, fitting=100, rejected=80, others=100)
    assert errors.corrected(48, 100).value == pytest.approx(0.4)


def test_interval_holds_the_true_rate_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for trial in range(300):
        found, rejected = rng.binomial(60, 0.85), rng.binomial(140, 0.75)
        fitting = rng.binomial(100, 0.4)
        passed = rng.binomial(fitting, 0.85) + rng.binomial(100 - fitting, 0.25)
        rate = JudgeErrors(found, 60, rejected, 140).corrected(passed, 100, seed=trial)
        held += rate.low <= 0.4 <= rate.high
    assert 0.9 < held / 300 <= 1


def test_judge_that_knows_nothing_corrects_nothing():
    assert JudgeErrors(found=50, fitting=100, rejected=50, others=100).corrected(30, 100) is None


def test_fewer_passed_than_by_mistake_alone_is_no_rate_of_zero():
    errors = JudgeErrors(found=90, fitting=100, rejected=60, others=100)
    assert errors.corrected(3, 100) is None and errors.corrected(41, 100).low == 0 < errors.corrected(41, 100).high


def test_errors_count_what_the_judge_passed_and_rejected():
    def judge(replies):
        return [learned_verdict(r, manner="fine" in r.reply, relevance=True, sense=True, reason="") for r in replies]

    rows = [("It is fine.", True), ("It is fine.", False), ("It is bad.", True), ("It is bad.", False)]
    labeled = [(JudgedReply("Is it?", text, "good_question"), fits) for text, fits in rows]
    errors = measure_errors(judge, [LabeledReply(reply, ends=True, fits=fits) for reply, fits in labeled])
    assert errors == JudgeErrors(found=1, fitting=2, rejected=1, others=2)
    cut_off = measure_errors(judge, [LabeledReply(reply, ends=False, fits=fits) for reply, fits in labeled])
    assert cut_off == JudgeErrors(found=0, fitting=2, rejected=2, others=2)


def test_labels_on_which_two_disagree_are_left_out(tmp_path):
    rows = [json.loads(line) for line in LABELS.read_text("utf-8").splitlines()]
    agreed = [row for row in rows if len({label["fits"] for label in row["labels"]}) == 1]
    assert len(read_labels(LABELS)) == len(agreed) < len(rows)


def test_row_without_labels_is_named(tmp_path):
    file = tmp_path / "labels.jsonl"
    file.write_text('{"prompt": "a", "reply": "b", "category": "wrong_fact", "ends": true}\n')
    with pytest.raises(MannersError, match=r"labels\.jsonl:1: a labeled reply lacks 'labels'"):
        read_labels(file)


def test_errors_of_the_rules_on_policy_replies_are_printed(capsys):
    errors = measure_errors(judge_by_rules, read_labels(LABELS))
    with capsys.disabled():
        print(f"\nrules, on labeled replies of policies: sensitivity {errors.sensitivity.percent()}, ", end="")
        print(f"specificity {errors.specificity.percent()}")
    assert errors.fitting >= 10 and errors.others >= 100 and errors.sensitivity.value > 0.5
