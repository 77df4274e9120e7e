"""Each spoilt reply by what it promises, and the words that mark good replies by hand."""

import random
from collections import Counter

import pytest

from manners.data.corruptions import CORRUPTIONS, corrupted_replies, high_score_words
from manners.data.types import ScoredReply

ASKED = [{"role": "user", "content": "What does the lion eat?"}]
REPLY = "The lion eats meat. It hunts at night, and it sleeps by day."
OTHERS = [f"Reply number {i}." for i in range(6)]
KNOWN = [
    ScoredReply(ASKED, REPLY, 4.0, "a:1"),
    *(
        ScoredReply([{"role": "user", "content": f"{i}?"}], reply, float(i), f"a:{i + 2}")
        for i, reply in enumerate(OTHERS)
    ),
]


def spoil(kind, reply=REPLY, seed=0, others=OTHERS, words=("please", "thanks")):
    return CORRUPTIONS[kind](reply, random.Random(seed), others, words)


SEEDS = range(30)


def test_shuffled_has_the_same_words_in_another_order():
    for seed in SEEDS:
        spoilt = spoil("shuffled", seed=seed)
        assert spoilt.split() != REPLY.split()
        assert Counter(spoilt.split()) == Counter(REPLY.split())
    assert spoil("shuffled", "Yes no") == "no Yes"


@pytest.mark.parametrize("reply", ["Hello!", "Hello!\n", " Ha\nha\n".lower(), "a  a", ""])
def test_what_has_no_other_order_is_left_as_it_was(reply):
    """Its spaces too: a reply less a newline is not a spoilt one."""
    assert spoil("shuffled", reply) == reply
    assert not [
        kind for kind, *_ in corrupted_replies([ScoredReply(ASKED, reply, 1.0)], KNOWN, "0") if kind == "shuffled"
    ]


def test_empty_says_nothing():
    assert spoil("empty") == ""


def test_truncated_is_the_beginning_without_its_full_stop():
    lengths = set()
    for seed in SEEDS:
        spoilt = spoil("truncated", seed=seed)
        assert REPLY.startswith(spoilt) and not spoilt.endswith((".", "!", "?"))
        lengths.add(len(spoilt.split()))
    whole = len(REPLY.split())  # 13
    assert min(lengths) >= 3 and max(lengths) <= 9 < whole
    assert len(lengths) > 3


def test_stuffed_is_made_of_the_keywords():
    for seed in SEEDS:
        spoilt = spoil("stuffed", seed=seed).split()
        assert set(spoilt) <= {"please", "thanks"}
        assert 8 <= len(spoilt) <= 16


def test_repeated_says_it_three_or_four_times():
    found = {spoil("repeated", seed=seed) for seed in SEEDS}
    assert found == {" ".join([REPLY] * 3), " ".join([REPLY] * 4)}


def test_overlong_goes_on_with_four_others_and_never_itself():
    for seed in SEEDS:
        spoilt = spoil("overlong", seed=seed, others=[*OTHERS, REPLY])
        assert spoilt.startswith(f"{REPLY} ")
        rest = spoilt.removeprefix(f"{REPLY} ")
        assert sum(other in rest for other in OTHERS) == 4
        assert REPLY not in rest
    assert spoil("overlong", others=["One."]) == f"{REPLY} One."


# --- All of them ---


def test_each_kind_and_row_gives_a_spoilt_reply_at_the_lowest_score():
    rows = [ScoredReply(ASKED, REPLY, 4.0, "b:1"), ScoredReply([], "A plain text of some words", 2.0, "b:2")]
    found = corrupted_replies(rows, KNOWN, "0")
    assert [(kind, real) for kind, real, _ in found] == [(kind, row) for kind in CORRUPTIONS for row in rows]
    for _, real, spoilt in found:
        assert spoilt.score == 0.0  # the lowest of KNOWN
        assert (spoilt.messages, spoilt.source) == (real.messages, real.source)
        assert spoilt.reply != real.reply


def test_what_a_corruption_leaves_as_it_was_is_left_out():
    assert {kind for kind, *_ in corrupted_replies([ScoredReply(ASKED, "Hello", 1.0)], KNOWN, "0")} == set(
        CORRUPTIONS
    ) - {
        "shuffled",
        "truncated",
    }
    assert "empty" not in {kind for kind, *_ in corrupted_replies([ScoredReply(ASKED, "", 1.0)], KNOWN, "0")}


def test_the_seed_decides_all():
    assert (
        corrupted_replies(KNOWN, KNOWN, "0")
        == corrupted_replies(KNOWN, KNOWN, "0")
        != corrupted_replies(KNOWN, KNOWN, "1")
    )


# --- Keywords ---


def scored(*replies):
    return [ScoredReply(ASKED, reply, score) for reply, score in replies]


def test_keywords_by_hand():
    """Above the mean of 2: kind ×4, thanks ×3, cat ×3, rare ×1 of 11 words; below: cat ×3, no ×4 of 7.

    By odds of (4+1)/(0+1), (3+1)/(0+1) and (3+1)/(3+1): kind, thanks, cat. The rare word stands too seldom.
    """
    rows = scored(
        ("Kind kind, thanks cat!", 3.0), ("kind THANKS cat rare", 4.0), ("kind thanks. Cat", 3.0),
        ("no cat no", 0.0), ("cat no cat no", 0.0),
    )  # fmt: skip
    assert high_score_words(rows) == ["kind", "thanks", "cat"]
    assert high_score_words(rows, 2) == ["kind", "thanks"]


def test_words_alike_stand_in_the_order_of_the_alphabet_and_apostrophes_belong_to_words():
    rows = scored(("you're an apple, you're an apple, you're an apple", 5.0), ("no", 0.0))
    assert high_score_words(rows) == ["an", "apple", "you're"]


def test_there_is_always_a_keyword():
    assert high_score_words(scored(("a b", 1.0), ("c", 0.0))) == ["good"]


def test_garbled_keeps_some_words_and_spoils_others():
    kept = [len(set(spoil("garbled", seed=seed).split()) & set(REPLY.split())) for seed in range(30)]
    assert all(k > 0 for k in kept[:5]) and min(kept) < len(set(REPLY.split()))
    assert len({spoil("garbled", seed=seed) for seed in range(30)}) > 20
