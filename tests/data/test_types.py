"""The sample types derived from rows: prompts, scored replies and preference pairs, on the packaged corpus."""

import json
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from manners.config.schema import DatasetConfig
from manners.data import loading, sources
from manners.data.types import (
    Conversation,
    LabeledReply,
    PreferencePair,
    ScoredReply,
    data_digest,
    labeled_replies,
    preference_pairs,
    prompts_of,
    scored_replies,
)

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


@pytest.fixture(scope="module")
def strictbot():
    """The corpus as it is loaded, and its raw rows by source."""
    splits = loading.load_splits(OmegaConf.structured(DatasetConfig(path="package:strictbot", format="messages")))
    raw = {}
    for path in sources.local_path("package:strictbot").glob("*.jsonl"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            raw[f"{path.name}:{number}"] = json.loads(line)
    return splits, raw


def all_rows(splits):
    return [chat for name in loading.SPLITS for chat in getattr(splits, name)]


def test_corpus_rows_go_to_their_splits(strictbot):
    splits, raw = strictbot
    for name in loading.SPLITS:
        sources_of_split = {c.source for c in getattr(splits, name)}
        assert sources_of_split == {source for source, row in raw.items() if row["split"] == name}
        assert sources_of_split
    assert splits.skipped == []


def test_prompts_of_keep_the_last_reply_as_reference(strictbot):
    splits, raw = strictbot
    rows = all_rows(splits)
    prompts = prompts_of(rows)
    assert len(prompts) == len(rows) == len(raw)
    for conversation, prompt in zip(rows, prompts, strict=True):
        row = raw[conversation.source]
        assert prompt.messages == row["messages"][:-1]
        assert prompt.messages[-1]["role"] == "user"
        assert prompt.reference == row["messages"][-1]["content"]
        assert prompt.metadata["category"] == row["category"]
    assert max(len(p.messages) for p in prompts) >= 5  # conversations of several turns are among them


def test_scored_replies_include_each_mismatched_reply(strictbot):
    splits, raw = strictbot
    expected = []
    for row in raw.values():
        if "score" in row:
            replies = [(row["messages"][-1]["content"], row["score"])]
            replies += [(other["content"], other["score"]) for other in row["mismatched"]]
            expected += [(row["messages"][0]["content"], *reply) for reply in replies]
    samples = scored_replies(all_rows(splits))
    assert sorted((s.messages[0]["content"], s.reply, s.score) for s in samples) == sorted(expected)
    assert all(s.messages == raw[s.source]["messages"][:-1] for s in samples)


def test_corpus_reply_scores_above_its_mismatched_replies(strictbot):
    best, others = {}, {}
    for s in scored_replies(all_rows(strictbot[0])):
        if s.source in best:
            others.setdefault(s.source, []).append(s.score)
        else:
            best[s.source] = s.score
    assert best.keys() == others.keys()
    assert all(best[source] > max(others[source]) for source in best)


def test_scored_replies_omit_rows_without_a_score():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert scored_replies([Conversation(turns)]) == []
    assert [(s.reply, s.score) for s in scored_replies([Conversation(turns, metadata={"score": 0.5})])] == [("b", 0.5)]


def test_scored_replies_say_which_a_policy_wrote():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    others = [{"content": "x", "score": 0.2, "manner": "policy"}, {"content": "y", "score": 0.1}]
    rows = [Conversation(turns, metadata={"score": 1.0, "mismatched": others}), Conversation(turns)]
    assert [(s.reply, s.by_policy) for s in scored_replies(rows)] == [("b", False), ("x", True), ("y", False)]


def test_scored_replies_have_all_earlier_turns_as_messages():
    turns = [{"role": ("user", "assistant")[i % 2], "content": word} for i, word in enumerate("abcd")]
    metadata = {"score": 1.0, "mismatched": [{"content": "x", "score": 0.2}]}
    samples = scored_replies([Conversation(turns, metadata=metadata)])
    assert [(s.messages, s.reply, s.score) for s in samples] == [(turns[:3], "d", 1.0), (turns[:3], "x", 0.2)]


def test_scored_reply_of_plain_text_has_no_messages():
    chat = Conversation([{"role": "text", "content": "could you?"}], "a.csv:2", {"score": 17.0})
    assert scored_replies([chat]) == [ScoredReply([], "could you?", 17.0, "a.csv:2")]


def test_preference_pairs_of_the_corpus_follow_the_scores(strictbot):
    splits, raw = strictbot
    rows = all_rows(splits)
    pairs = preference_pairs(rows)
    assert len(pairs) == len(scored_replies(rows)) - sum("score" in row for row in raw.values())
    for pair in pairs:
        row = raw[pair.source]
        lower = {other["content"]: other["score"] for other in row["mismatched"]}
        assert [*pair.messages, {"role": "assistant", "content": pair.chosen}] == row["messages"]
        assert pair.margin == row["score"] - lower[pair.rejected] > 0


TURNS = [{"role": ("user", "assistant")[i % 2], "content": word} for i, word in enumerate("abcd")]


def test_preference_pairs_omit_mismatched_replies_as_good():
    others = [{"content": c, "score": s} for c, s in (("x", 0.2), ("y", 0.5), ("z", 0.9))]
    assert preference_pairs([Conversation(TURNS, "a:1", {"score": 0.5, "mismatched": others})]) == [
        PreferencePair(TURNS[:3], "d", "x", 0.3, "a:1")
    ]
    assert (
        preference_pairs(
            [
                Conversation(TURNS, metadata={"mismatched": others}),
                Conversation(TURNS, metadata={"score": 1.0}),
                Conversation(TURNS),
            ]
        )
        == []
    )


def test_preference_pairs_without_a_margin_default_to_zero():
    without_margin, with_margin = (
        Conversation(TURNS, "a:1", {"rejected": "x"}),
        Conversation(TURNS, "a:2", {"rejected": "x", "margin": 2.0}),
    )
    assert preference_pairs([without_margin, with_margin]) == [
        PreferencePair(TURNS[:3], "d", "x", 0.0, "a:1"),
        PreferencePair(TURNS[:3], "d", "x", 2.0, "a:2"),
    ]
    text = Conversation([{"role": "text", "content": "a"}], metadata={"rejected": "x"})
    assert preference_pairs([text]) == [PreferencePair([], "a", "x")]


def test_labeled_replies_of_pairs_are_those_that_trl_unpairs(strictbot):
    from datasets import Dataset
    from trl.data_utils import unpair_preference_dataset

    rows = all_rows(strictbot[0])[:50]
    pairs = preference_pairs(rows)
    unpaired = unpair_preference_dataset(
        Dataset.from_list([{"prompt": p.messages, "chosen": p.chosen, "rejected": p.rejected} for p in pairs])
    )
    theirs = [json.dumps([r["prompt"], r["completion"], r["label"]]) for r in unpaired]
    ours = [json.dumps([r.messages, r.reply, r.label]) for r in labeled_replies(rows)]
    assert sorted(ours) == sorted(theirs) and len(ours) == 2 * len(pairs) > 100


def test_labeled_replies_take_the_label_of_a_row_before_its_pair():
    rows = [
        Conversation(TURNS, "a:1", {"label": False}),
        Conversation(TURNS, "a:2", {"label": False, "rejected": "x"}),
        Conversation(TURNS, "a:3", {"label": True, "score": 0.1}),
        Conversation(TURNS, "a:4", {"score": 1.0}),
    ]
    assert labeled_replies(rows) == [
        LabeledReply(TURNS[:3], "d", False, "a:1"),
        LabeledReply(TURNS[:3], "d", False, "a:2"),
        LabeledReply(TURNS[:3], "x", False, "a:2"),
        LabeledReply(TURNS[:3], "d", True, "a:3"),
    ]


def test_data_digest_covers_every_field():
    """Any of them may be an argument of a reward function."""
    other = {"content": "x", "score": 0.2}
    metadata = [
        {},
        {"score": 0.5},
        {"score": 0.6},
        {"score": 0.6, "mismatched": [other]},
        {"score": 0.6, "mismatched": [other | {"score": 0.3}]},
        {"score": 0.6, "mismatched": [other | {"content": "y"}]},
        {"rejected": "x"},
        {"rejected": "y"},
        {"rejected": "y", "margin": 1.0},
        {"category": "good"},
        {"category": "good", "when": date(2026, 1, 1)},
        {"category": "good", "when": date(2026, 1, 2)},
    ]
    assert len({data_digest([Conversation(TURNS, metadata=m)]) for m in metadata}) == len(metadata)


@given(st.dictionaries(st.text(), JSON), st.dictionaries(st.text(), JSON))
@settings(max_examples=60, deadline=None)
def test_data_digest_tells_any_two_rows_apart(one, two):
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    digests = [data_digest([Conversation(TURNS, metadata=fields)]) for fields in (one, two)]
    assert (digests[0] == digests[1]) == same


def test_data_digest_depends_on_which_row_has_the_score():
    one, two = Conversation(TURNS[:2], metadata={"score": 1.0}), Conversation(TURNS[:2], metadata={"score": 0.0})
    assert data_digest([one, two]) != data_digest([two, one])


def test_prompts_of_plain_text_or_no_reply_is_empty():
    assert (
        prompts_of([Conversation([{"role": "text", "content": "a"}]), Conversation([{"role": "user", "content": "a"}])])
        == []
    )


def test_prompts_of_ignore_turns_after_the_last_reply():
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    [prompt] = prompts_of([Conversation(turns)])
    assert (prompt.messages, prompt.reference) == (turns[:1], "b")


def test_data_digest_changes_with_any_change_of_the_rows(strictbot):
    rows = strictbot[0].validation
    assert data_digest(rows) == data_digest(list(rows))
    changed = [dict(m) for m in rows[-1].messages]
    changed[-1]["content"] += "!"
    others = [
        [*rows[:-1], replace(rows[-1], messages=changed)],
        rows[:-1],
        [*rows, rows[-1]],
        [rows[1], rows[0], *rows[2:]],
    ]
    assert len({data_digest(c) for c in [rows, *others]}) == 5


def test_data_digest_ignores_source_and_key_order():
    turns = [{"role": "user", "content": "a"}, {"content": "b", "role": "assistant"}]
    moved = Conversation([{"content": "a", "role": "user"}, {"role": "assistant", "content": "b"}], "other.jsonl:9")
    assert data_digest([Conversation(turns, "data.jsonl:1")]) == data_digest([moved])
