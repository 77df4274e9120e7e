"""Scorers whose weaknesses are known, put through the sanity suite."""

import json
import math

import pytest
from rich.console import Console

from manners.data.corruptions import CORRUPTIONS, corrupted_replies
from manners.data.types import ScoredReply
from manners.errors import MannersError
from manners.evaluation.metrics.reward_sanity import (
    MOST,
    SHOWN,
    SanityResult,
    check_sanity,
    sanity_markdown,
    show_sanity,
)
from manners.evaluation.stats import proportion

NOUNS = ["apple", "bridge", "candle", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket"]
PROMPT = [{"role": "user", "content": "Tell me | something."}]


def rows(count, score=1.0, start=0):
    """Replies of eight different words, so that every corruption changes them."""
    return [
        ScoredReply(
            PROMPT, f"The {NOUNS[i % 10]} stood by one {NOUNS[(i + 3) % 10]} of number {i}.", score, f"rows.jsonl:{i}"
        )
        for i in range(start, start + count)
    ]


REAL = rows(30)
KNOWN = rows(20, 1.0, 100) + rows(20, 0.0, 200)


def knows(reply):
    """Full marks for the replies themselves, and for nothing else."""
    return float(reply in {r.reply for r in REAL})


def scorer(score):
    return lambda asked: [score(reply) for _, reply in asked]


def test_a_scorer_that_knows_the_real_replies_passes_in_every_kind():
    found = check_sanity(scorer(knows), REAL, KNOWN, seed=1)
    assert set(found.kinds) == set(CORRUPTIONS)
    counts = {name: kind.count for name, kind in found.kinds.items()}
    assert counts.pop("garbled") >= 25  # chance leaves some as they were: those are no cases
    assert set(counts.values()) == {30}
    assert all(kind.below == proportion(kind.count, kind.count) for kind in found.kinds.values())
    assert found.passed == proportion(30, 30)  # those of a reply are no independent cases


def test_a_scorer_that_likes_length_falls_for_what_is_longer():
    found = check_sanity(scorer(len), REAL, KNOWN, seed=1)
    shares = {name: kind.below.value for name, kind in found.kinds.items()}
    assert (shares["repeated"], shares["overlong"]) == (0.0, 0.0)
    assert (shares["empty"], shares["truncated"]) == (1.0, 1.0)
    assert shares["shuffled"] == 0.0  # as long as before: an equal score is no better than a higher one
    counted = sum(kind.below.value * kind.count for kind in found.kinds.values())
    assert found.passed.value == pytest.approx(counted / found.count)
    assert found.passed.low < found.passed.value < found.passed.high < 1


def test_the_shares_are_those_of_counting_one_by_one():
    def score(reply):
        return float(sum(map(ord, reply)) % 7)  # arbitrary, and the same for the same reply

    found = check_sanity(scorer(score), REAL, KNOWN, seed=3)
    spoilt = corrupted_replies(REAL, KNOWN, "sanity/3")
    hits = [(kind, row.source, score(bad.reply) < score(row.reply)) for kind, row, bad in spoilt]
    for name, kind in found.kinds.items():
        of_kind = [hit for k, _, hit in hits if k == name]
        assert kind.below == proportion(sum(of_kind), len(of_kind))
        over = [(score(bad.reply) - score(row.reply), bad.reply) for k, row, bad in spoilt if k == name]
        assert kind.worst.spoilt_score - kind.worst.real_score == max(over)[0]
        assert (max(over)[0], kind.worst.spoilt) in over
    assert found.passed.value == pytest.approx(sum(hit for _, _, hit in hits) / len(hits))
    assert 0 < found.passed.value < 1


def test_the_worst_is_shown_with_its_prompt_and_both_scores():
    def score(reply):
        return 5.0 if not reply else knows(reply)

    worst = check_sanity(scorer(score), REAL, KNOWN, seed=1).kinds["empty"].worst
    assert (worst.prompt, worst.spoilt, worst.real_score, worst.spoilt_score) == ("Tell me | something.", "", 1.0, 5.0)
    assert knows(worst.real)


def test_a_score_that_is_no_number_has_noticed_nothing():
    found = check_sanity(scorer(lambda reply: knows(reply) if reply else math.nan), REAL, KNOWN, seed=1)
    assert found.kinds["empty"].below.value == 0.0
    assert found.kinds["shuffled"].below.value == 1.0


def test_only_good_replies_are_spoilt_and_not_too_many():
    asked = []

    def score(pairs):
        asked.extend(pairs)
        return [0.0] * len(pairs)

    found = check_sanity(score, rows(300) + rows(50, 0.49, 500), KNOWN, seed=1)  # the mean of the known rows is 0.5
    assert max(kind.count for kind in found.kinds.values()) == MOST == 200
    real = [reply for _, reply in asked[:MOST]]
    assert len(set(real)) == MOST
    assert not set(real) & {r.reply for r in rows(50, 0.49, 500)}
    assert real != [r.reply for r in rows(MOST)]  # drawn from all of them, not the first
    assert all(messages == PROMPT for messages, _ in asked)


def test_the_same_seed_spoils_the_same():
    assert check_sanity(scorer(len), REAL, KNOWN, seed=1) == check_sanity(scorer(len), REAL, KNOWN, seed=1)
    assert check_sanity(scorer(len), REAL, KNOWN, seed=1) != check_sanity(scorer(len), REAL, KNOWN, seed=2)


def test_chosen_replies_of_pairs_and_plain_texts_are_spoilt_as_well():
    chosen = [ScoredReply([], r.reply, 1.0) for r in REAL]
    found = check_sanity(scorer(knows), chosen, chosen, seed=1)
    assert found.passed == proportion(30, 30)
    assert found.kinds["shuffled"].worst.prompt == ""


def test_no_good_reply_to_spoil_is_said_so():
    with pytest.raises(MannersError, match="none of the 3 held-out replies"):
        check_sanity(scorer(len), rows(3, 0.2), KNOWN, seed=1)


def test_it_survives_the_run_folder():
    found = check_sanity(scorer(len), REAL, KNOWN, seed=1)
    assert SanityResult.from_json(json.loads(json.dumps(found.to_json()))) == found
    metrics = found.metrics("after")
    assert metrics["after/sanity"] == found.passed.value
    assert metrics["after/sanity_repeated"] == 0.0
    assert len(metrics) == 1 + len(CORRUPTIONS)


def test_tables_name_every_kind_and_cut_what_is_long(capsys):
    found = check_sanity(scorer(len), REAL, KNOWN, seed=1)
    lines = sanity_markdown(found)
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 1 + len(CORRUPTIONS)
    assert {line.count(" | ") for line in table} == {3}
    empty = next(line for line in table if line.startswith("| empty"))
    assert "100.0 % [88.6, 100.0] | (nothing)" in empty  # 1 / (1 + 3.8415 / 30) = 0.886
    assert all(len(line) < SHOWN + 80 for line in table)
    show_sanity(Console(width=160), found)
    shown = capsys.readouterr().out
    assert "[88.6, 100.0]" in shown  # no markup to rich
    assert all(name in shown for name in CORRUPTIONS)


def test_the_share_over_all_kinds_is_as_sure_as_the_replies_are_many():
    """Six failures of one reply are one reply's, not six."""
    bad = REAL[0].reply
    found = check_sanity(scorer(lambda r: 0.0 if r == bad else knows(r)), REAL, KNOWN, seed=1)
    hits = [0] + [6] * 29
    assert found.passed.value == pytest.approx(sum(hits) / 180)
    assert found.passed.low < proportion(174, 180).low - 0.02
