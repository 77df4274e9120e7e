"""The sanity check, on scorers whose weaknesses are known."""

import math

import pytest
from rich.console import Console

from manners.data.corruptions import CORRUPTIONS, corrupted_replies
from manners.data.types import ScoredReply
from manners.errors import MannersError
from manners.evaluation.metrics.reward_sanity import MAX_REPLIES, check_sanity
from manners.evaluation.reports.reward_report import MAX_REPLY_CHARS, sanity_table
from manners.evaluation.stats import proportion

NOUNS = ["apple", "bridge", "candle", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket"]
PROMPT = [{"role": "user", "content": "Tell me | something."}]


def rows(count, score=1.0, start=0):
    """Replies of eight different words, which every corruption changes."""
    return [
        ScoredReply(
            PROMPT, f"The {NOUNS[i % 10]} stood by one {NOUNS[(i + 3) % 10]} of number {i}.", score, f"rows.jsonl:{i}"
        )
        for i in range(start, start + count)
    ]


ORIGINALS = rows(30)
TRAIN = rows(20, 1.0, 100) + rows(20, 0.0, 200)


def is_original(reply):
    """1 for the original replies, 0 for all others."""
    return float(reply in {r.reply for r in ORIGINALS})


def scorer(score):
    return lambda replies: [score(reply) for _, reply in replies]


def test_perfect_scorer_has_accuracy_1_for_every_corruption():
    result = check_sanity(scorer(is_original), ORIGINALS, TRAIN, seed=1)
    assert set(result.by_corruption) == set(CORRUPTIONS)
    counts = {name: kind.count for name, kind in result.by_corruption.items()}
    for name in ("garbled", "garbled_word"):  # some remain unchanged by chance, and are left out
        assert 25 <= counts.pop(name) <= 30
    assert set(counts.values()) == {30}
    assert all(kind.accuracy == proportion(kind.count, kind.count) for kind in result.by_corruption.values())
    assert result.accuracy == proportion(30, 30)  # the corruptions of one reply are not independent


def test_length_scorer_fails_on_longer_corruptions():
    result = check_sanity(scorer(len), ORIGINALS, TRAIN, seed=1)
    accuracies = {name: kind.accuracy.value for name, kind in result.by_corruption.items()}
    assert (accuracies["repeated"], accuracies["overlong"]) == (0.0, 0.0)
    assert (accuracies["empty"], accuracies["truncated"]) == (1.0, 1.0)
    assert accuracies["shuffled"] == 0.0  # of equal length: an equal score is a failure
    correct = sum(kind.accuracy.value * kind.count for kind in result.by_corruption.values())
    assert result.accuracy.value == pytest.approx(correct / result.count)
    assert result.accuracy.low < result.accuracy.value < result.accuracy.high < 1


def test_accuracies_equal_counting_reply_by_reply():
    def score(reply):
        return float(sum(map(ord, reply)) % 7)  # arbitrary and deterministic

    result = check_sanity(scorer(score), ORIGINALS, TRAIN, seed=3)
    corrupted = corrupted_replies(ORIGINALS, TRAIN, "sanity/3")
    hits = [(kind, row.source, score(bad.reply) < score(row.reply)) for kind, row, bad in corrupted]
    for name, kind in result.by_corruption.items():
        of_kind = [hit for k, _, hit in hits if k == name]
        assert kind.accuracy == proportion(sum(of_kind), len(of_kind))
        margins = [(score(bad.reply) - score(row.reply), bad.reply) for k, row, bad in corrupted if k == name]
        assert kind.worst.corrupted_score - kind.worst.original_score == max(margins)[0]
        assert (max(margins)[0], kind.worst.corrupted) in margins
    assert result.accuracy.value == pytest.approx(sum(hit for _, _, hit in hits) / len(hits))
    assert 0 < result.accuracy.value < 1


def test_worst_example_has_its_prompt_and_both_scores():
    def score(reply):
        return 5.0 if not reply else is_original(reply)

    worst = check_sanity(scorer(score), ORIGINALS, TRAIN, seed=1).by_corruption["empty"].worst
    assert (worst.prompt, worst.corrupted, worst.original_score, worst.corrupted_score) == (
        "Tell me | something.",
        "",
        1.0,
        5.0,
    )
    assert is_original(worst.original)


def test_nan_score_counts_as_failure():
    result = check_sanity(scorer(lambda reply: is_original(reply) if reply else math.nan), ORIGINALS, TRAIN, seed=1)
    assert result.by_corruption["empty"].accuracy.value == 0.0
    assert result.by_corruption["shuffled"].accuracy.value == 1.0


def test_only_good_replies_are_corrupted_up_to_the_maximum():
    scored = []

    def score(replies):
        scored.extend(replies)
        return [0.0] * len(replies)

    result = check_sanity(score, rows(300) + rows(50, 0.49, 500), TRAIN, seed=1)  # the mean of the training rows is 0.5
    assert max(kind.count for kind in result.by_corruption.values()) == MAX_REPLIES
    originals = [reply for _, reply in scored[:MAX_REPLIES]]
    assert len(set(originals)) == MAX_REPLIES
    assert not set(originals) & {r.reply for r in rows(50, 0.49, 500)}
    assert originals != [r.reply for r in rows(MAX_REPLIES)]  # a random sample, not the first rows
    assert all(messages == PROMPT for messages, _ in scored)


def test_check_sanity_is_deterministic_by_seed():
    assert check_sanity(scorer(len), ORIGINALS, TRAIN, seed=1) == check_sanity(scorer(len), ORIGINALS, TRAIN, seed=1)
    assert check_sanity(scorer(len), ORIGINALS, TRAIN, seed=1) != check_sanity(scorer(len), ORIGINALS, TRAIN, seed=2)


def test_texts_without_prompt_are_corrupted_too():
    chosen = [ScoredReply([], r.reply, 1.0) for r in ORIGINALS]
    result = check_sanity(scorer(is_original), chosen, chosen, seed=1)
    assert result.accuracy == proportion(30, 30)
    assert result.by_corruption["shuffled"].worst.prompt == ""


def test_check_sanity_raises_without_good_replies():
    with pytest.raises(MannersError, match="none of the 3 held-out replies"):
        check_sanity(scorer(len), rows(3, 0.2), TRAIN, seed=1)


def test_sanity_metrics_by_kind_of_corruption():
    result = check_sanity(scorer(len), ORIGINALS, TRAIN, seed=1)
    metrics = result.metrics("after")
    assert metrics["after/sanity"] == result.accuracy.value
    assert metrics["after/sanity_repeated"] == 0.0
    assert metrics.keys() == {"after/sanity", *(f"after/sanity_{name}" for name in CORRUPTIONS)}


def test_tables_name_every_corruption_and_cut_long_replies(capsys):
    result = check_sanity(scorer(len), ORIGINALS, TRAIN, seed=1)
    table = sanity_table(result).markdown().splitlines()
    assert len(table) == 2 + 1 + len(CORRUPTIONS)
    assert {line.count(" | ") for line in table} == {3}
    empty = next(line for line in table if line.startswith("| empty"))
    assert "100.0 % [88.6, 100.0] | (nothing)" in empty  # 1 / (1 + 3.8415 / 30) = 0.886
    assert all(len(line) < MAX_REPLY_CHARS + 80 for line in table)
    sanity_table(result).show(Console(width=160))
    shown = capsys.readouterr().out
    assert "[88.6, 100.0]" in shown  # not taken for rich markup
    assert all(name in shown for name in CORRUPTIONS)


def test_overall_interval_treats_replies_as_clusters():
    """All failures on one reply are not independent."""
    bad = ORIGINALS[0].reply
    result = check_sanity(scorer(lambda r: 0.0 if r == bad else is_original(r)), ORIGINALS, TRAIN, seed=1)
    failures = sum(original is ORIGINALS[0] for _, original, _ in corrupted_replies(ORIGINALS, TRAIN, "sanity/1"))
    correct = result.count - failures
    assert failures >= 6 and result.accuracy.value == pytest.approx(correct / result.count)
    assert result.accuracy.low < proportion(correct, result.count).low - 0.02
