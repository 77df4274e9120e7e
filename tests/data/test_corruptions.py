"""Each corruption by its definition, and the words that are typical of good replies, by hand."""

import random
from collections import Counter

import pytest

from manners.data.corruptions import CORRUPTIONS, corrupted_replies, high_score_words
from manners.data.types import ScoredReply

PROMPT = [{"role": "user", "content": "What does the lion eat?"}]
REPLY = "The lion eats meat. It hunts at night, and it sleeps by day."
OTHERS = [f"Reply number {i}." for i in range(6)]
TRAIN_ROWS = [
    ScoredReply(PROMPT, REPLY, 4.0, "a:1"),
    *(
        ScoredReply([{"role": "user", "content": f"{i}?"}], reply, float(i), f"a:{i + 2}")
        for i, reply in enumerate(OTHERS)
    ),
]


def corrupt(kind, reply=REPLY, seed=0, others=OTHERS, words=("please", "thanks")):
    return CORRUPTIONS[kind](reply, random.Random(seed), others, words)


SEEDS = range(30)


def test_shuffled_keeps_the_words_and_changes_their_order():
    for seed in SEEDS:
        corrupted = corrupt("shuffled", seed=seed)
        assert corrupted.split() != REPLY.split()
        assert Counter(corrupted.split()) == Counter(REPLY.split())
    assert corrupt("shuffled", "Yes no") == "no Yes"


@pytest.mark.parametrize("reply", ["Hello!", "Hello!\n", " Ha\nha\n".lower(), "a  a", ""])
def test_shuffled_leaves_a_reply_without_another_order_unchanged(reply):
    """Including its spaces: a reply without its newline is not a corrupted one."""
    assert corrupt("shuffled", reply) == reply
    assert not [
        kind for kind, *_ in corrupted_replies([ScoredReply(PROMPT, reply, 1.0)], TRAIN_ROWS, "0") if kind == "shuffled"
    ]


def test_empty_returns_no_text():
    assert corrupt("empty") == ""


def test_truncated_keeps_the_beginning_without_final_punctuation():
    lengths = set()
    for seed in SEEDS:
        corrupted = corrupt("truncated", seed=seed)
        assert REPLY.startswith(corrupted) and not corrupted.endswith((".", "!", "?"))
        lengths.add(len(corrupted.split()))
    total = len(REPLY.split())  # 13
    assert min(lengths) >= 3 and max(lengths) <= 9 < total
    assert len(lengths) > 3


def test_stuffed_consists_of_keywords():
    for seed in SEEDS:
        corrupted = corrupt("stuffed", seed=seed).split()
        assert set(corrupted) <= {"please", "thanks"}
        assert 8 <= len(corrupted) <= 16


def test_repeated_has_the_reply_three_or_four_times():
    replies = {corrupt("repeated", seed=seed) for seed in SEEDS}
    assert replies == {" ".join([REPLY] * 3), " ".join([REPLY] * 4)}


def test_overlong_appends_up_to_four_other_replies():
    for seed in SEEDS:
        corrupted = corrupt("overlong", seed=seed, others=[*OTHERS, REPLY])
        assert corrupted.startswith(f"{REPLY} ")
        rest = corrupted.removeprefix(f"{REPLY} ")
        assert sum(other in rest for other in OTHERS) == 4
        assert REPLY not in rest
    assert corrupt("overlong", others=["One."]) == f"{REPLY} One."


def test_garbled_word_changes_the_end_of_one_word():
    for seed in SEEDS:
        corrupted = corrupt("garbled_word", seed=seed, others=["An elephant drinks water."]).split()
        [(old, new)] = [(a, b) for a, b in zip(REPLY.split(), corrupted, strict=True) if a != b]
        assert new[:2] == old[:2] and new[-3:] in ("ant", "nks")
    assert corrupt("garbled_word", "It is so.") == "It is so."


def test_misplaced_is_a_good_reply_of_the_same_kind():
    train = [ScoredReply(PROMPT, reply, score) for reply, score in (("Why?", 1.0), ("So.", 1.0), ("No?", 0.0))]
    original = ScoredReply(PROMPT, "How do you know?", 1.0)
    found = [bad.reply for kind, _, bad in corrupted_replies([original], train, "0") if kind == "misplaced"]
    assert found == ["Why?"]  # no statement, and no bad reply


# --- All kinds ---


def test_corrupted_replies_score_lowest_for_each_kind_and_row():
    rows = [ScoredReply(PROMPT, REPLY, 4.0, "b:1"), ScoredReply([], "A plain text of some words", 2.0, "b:2")]
    triples = corrupted_replies(rows, TRAIN_ROWS, "0")
    expected = [(kind, row) for kind in CORRUPTIONS for row in rows]
    expected.remove(("misplaced", rows[1]))  # a text without a prompt
    assert [(kind, original) for kind, original, _ in triples] == expected
    for _, original, corrupted in triples:
        assert corrupted.score == 0.0  # the lowest of TRAIN_ROWS
        assert (corrupted.messages, corrupted.source) == (original.messages, original.source)
        assert corrupted.reply != original.reply


def test_corrupted_replies_omit_unchanged_replies():
    kinds = {kind for kind, *_ in corrupted_replies([ScoredReply(PROMPT, "Hello", 1.0)], TRAIN_ROWS, "0")}
    assert kinds == set(CORRUPTIONS) - {"shuffled", "truncated", "misplaced"}  # no good reply ends as "Hello" does
    assert "empty" not in {kind for kind, *_ in corrupted_replies([ScoredReply(PROMPT, "", 1.0)], TRAIN_ROWS, "0")}


def test_corrupted_replies_depend_on_the_seed_only():
    assert (
        corrupted_replies(TRAIN_ROWS, TRAIN_ROWS, "0")
        == corrupted_replies(TRAIN_ROWS, TRAIN_ROWS, "0")
        != corrupted_replies(TRAIN_ROWS, TRAIN_ROWS, "1")
    )


# --- Keywords ---


def scored(*replies):
    return [ScoredReply(PROMPT, reply, score) for reply, score in replies]


def test_high_score_words_by_hand():
    """Above the mean of 2: kind ×4, thanks ×3, cat ×3, rare ×1 of 11 words; below: cat ×3, no ×4 of 7.

    By odds of (4+1)/(0+1), (3+1)/(0+1) and (3+1)/(3+1): kind, thanks, cat. The rare word occurs fewer than three times.
    """
    rows = scored(
        ("Kind kind, thanks cat!", 3.0), ("kind THANKS cat rare", 4.0), ("kind thanks. Cat", 3.0),
        ("no cat no", 0.0), ("cat no cat no", 0.0),
    )  # fmt: skip
    assert high_score_words(rows) == ["kind", "thanks", "cat"]
    assert high_score_words(rows, 2) == ["kind", "thanks"]


def test_high_score_words_sort_ties_and_keep_apostrophes():
    rows = scored(("you're an apple, you're an apple, you're an apple", 5.0), ("no", 0.0))
    assert high_score_words(rows) == ["an", "apple", "you're"]


def test_high_score_words_are_never_empty():
    assert high_score_words(scored(("a b", 1.0), ("c", 0.0))) == ["good"]


def test_garbled_keeps_some_words_and_replaces_others():
    kept = [len(set(corrupt("garbled", seed=seed).split()) & set(REPLY.split())) for seed in range(30)]
    assert all(k > 0 for k in kept[:5]) and min(kept) < len(set(REPLY.split()))
    assert len({corrupt("garbled", seed=seed) for seed in range(30)}) > 20
