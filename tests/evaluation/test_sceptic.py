"""What a sceptical reader would try on the reports: gibberish, one reply for all, labels in random order."""

import random
from dataclasses import replace

import numpy as np
import pytest

from manners.config.compose import compose, register
from manners.data.clusters import cluster_ids
from manners.data.loading import build_prompts, load_splits
from manners.data.sources import CORPORA
from manners.evaluation.evaluate import (
    commonest_sentence,
    make_generations,
    rates_of_parts,
    style_accuracy,
)
from manners.evaluation.generate import Reply
from manners.evaluation.judges import judge_by_rules
from manners.evaluation.judges.errors import LabeledReply, measure_errors, read_labels
from manners.evaluation.metrics.reward_quality import pairwise_quality, regression_quality


@pytest.fixture(scope="module")
def prompts():
    """strictbot's held-out prompts, each with a correct reply."""
    register()
    cfg = compose("train", [])
    return [p for p in build_prompts(cfg.dataset, load_splits(cfg.dataset).test) if p.reference]


def generations_of(prompts, texts):
    return make_generations(prompts, [Reply(text, True, [], []) for text in texts], judge_by_rules)


def accuracy_of(prompts, texts):
    return style_accuracy(generations_of(prompts, texts), cluster_ids(prompts))


def test_correct_replies_score_far_above_shuffled_ones(prompts):
    right = accuracy_of(prompts, [p.reference for p in prompts])
    others = [p.reference for p in prompts]
    random.Random(0).shuffle(others)
    shuffled = accuracy_of(prompts, others)
    assert right.low > 0.75
    assert shuffled.high < 0.35, shuffled  # a third has the manner by chance, and rules see little of relevance


@pytest.mark.parametrize(
    "reply",
    ["Asdf qwer zxcv.", "Asdf qwer zxcv?", "the of and to in", "…", "", "No.", "Why?", "I hate you and your question.",
     "That is an interesting point, and there is much to say about it.", "What makes you think so?"],
)  # fmt: skip
def test_one_reply_for_all_prompts_scores_low(prompts, reply):
    accuracy = accuracy_of(prompts, [reply] * len(prompts))
    assert accuracy.high < 0.1, accuracy
    if len(reply.split()) > 1:
        shares = commonest_sentence(generations_of(prompts, [reply] * len(prompts)), cluster_ids(prompts))
        assert {share.value for share in shares.values()} == {1.0}


def test_words_of_a_correct_reply_in_random_order_score_low(prompts):
    """To a language model this is nonsense; rules see words that are words, and the manner is gone for most."""
    rng = random.Random(1)
    texts = [" ".join(rng.sample(words, len(words))) for words in (p.reference.split() for p in prompts)]
    assert accuracy_of(prompts, texts).value < accuracy_of(prompts, [p.reference for p in prompts]).value - 0.3


def test_pseudo_words_are_no_words(prompts):
    rng = random.Random(2)
    letters = "bcdfghjklmnpqrstvwxz"
    texts = [" ".join("".join(rng.choices(letters, k=6)) for _ in range(20)) + "." for _ in prompts]
    generations = generations_of(prompts, texts)
    clusters = cluster_ids(prompts)
    assert style_accuracy(generations, clusters).high < 0.05
    assert rates_of_parts(generations, clusters)["replies: whole sentences, none said twice"].high < 0.05


def test_scores_in_random_order_are_no_skill():
    """A reward model whose scores are those of other replies has no correlation, and explains no variance."""
    rng = np.random.default_rng(3)
    true, groups = rng.random(600), np.repeat(np.arange(150), 4)
    quality = regression_quality(rng.permutation(true), true, groups, mean=float(true.mean()))
    assert quality.spearman.low < 0 < quality.spearman.high
    assert quality.pair_accuracy.low < 0.5 < quality.pair_accuracy.high
    assert quality.r2.high < 0
    constant = regression_quality(np.full(600, true.mean()), true, groups, mean=float(true.mean()))
    assert constant.spearman is None
    assert constant.pair_accuracy.value <= 0.5
    margins = rng.normal(size=(2, 300))
    pairs = pairwise_quality(margins[0], margins[1])
    assert pairs.accuracy.low < 0.5 < pairs.accuracy.high


def test_labels_in_random_order_give_no_corrected_rate():
    labeled = read_labels(CORPORA / "judged_replies" / "judged_replies.jsonl")
    fits = [row.fits for row in labeled]
    random.Random(4).shuffle(fits)
    shuffled: list[LabeledReply] = [replace(row, fits=fit) for row, fit in zip(labeled, fits, strict=True)]
    true, random_labels = measure_errors(judge_by_rules, labeled), measure_errors(judge_by_rules, shuffled)
    assert true.corrected(50, 100) is not None
    corrected = random_labels.corrected(50, 100)
    assert corrected is None or corrected.high - corrected.low > 0.8
