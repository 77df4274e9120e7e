"""The views of rows: chats, prompts and scored replies, on the packaged corpus."""

import json
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from manners.config.schema import DatasetConfig
from manners.data import loading, sources
from manners.data.types import (
    Conversation,
    PreferencePair,
    ScoredReply,
    data_digest,
    preference_pairs,
    prompts_of,
    scored_replies,
)


@pytest.fixture(scope="module")
def strictbot():
    """The corpus as the readers give it, and its raw rows by where they stand."""
    splits = loading.load_splits(OmegaConf.structured(DatasetConfig(path="package:strictbot", format="messages")))
    raw = {}
    for path in sources.local_path("package:strictbot").glob("*.jsonl"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            raw[f"{path.name}:{number}"] = json.loads(line)
    return splits, raw


def chats_of(splits):
    return [chat for name in loading.SPLITS for chat in getattr(splits, name)]


def test_every_row_of_the_corpus_is_read_into_its_split(strictbot):
    splits, raw = strictbot
    assert len(raw) > 5000
    for name in loading.SPLITS:
        wheres = {c.source for c in getattr(splits, name)}
        assert wheres == {where for where, row in raw.items() if row["split"] == name}
        assert wheres
    assert splits.skipped == []


def test_a_prompt_ends_before_the_last_reply_and_keeps_it_as_reference(strictbot):
    splits, raw = strictbot
    chats = chats_of(splits)
    found = prompts_of(chats)
    assert len(found) == len(chats) == len(raw)
    for chat, prompt in zip(chats, found, strict=True):
        row = raw[chat.source]
        assert prompt.messages == row["messages"][:-1]
        assert prompt.messages[-1]["role"] == "user"
        assert prompt.reference == row["messages"][-1]["content"]
        assert prompt.metadata["category"] == row["category"]
    assert max(len(p.messages) for p in found) >= 5  # turns of several are among them


def test_scored_gives_the_fitting_reply_and_each_mismatched_one(strictbot):
    splits, raw = strictbot
    expected = []
    for row in raw.values():
        if "score" in row:
            replies = [(row["messages"][-1]["content"], row["score"])]
            replies += [(other["content"], other["score"]) for other in row["mismatched"]]
            expected += [(row["messages"][0]["content"], *reply) for reply in replies]
    found = scored_replies(chats_of(splits))
    assert sorted((s.messages[0]["content"], s.reply, s.score) for s in found) == sorted(expected)
    assert all(s.messages == raw[s.source]["messages"][:-1] for s in found)


def test_the_fitting_reply_has_the_highest_score_of_its_row(strictbot):
    best, others = {}, {}
    for s in scored_replies(chats_of(strictbot[0])):
        if s.source in best:
            others.setdefault(s.source, []).append(s.score)
        else:
            best[s.source] = s.score
    assert best.keys() == others.keys()
    assert all(best[where] > max(others[where]) for where in best)


def test_a_row_without_a_score_is_not_scored():
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert scored_replies([Conversation(talk)]) == []
    assert [(s.reply, s.score) for s in scored_replies([Conversation(talk, metadata={"score": 0.5})])] == [("b", 0.5)]


def test_a_score_is_of_the_last_reply_after_all_that_was_said():
    talk = [{"role": ("user", "assistant")[i % 2], "content": word} for i, word in enumerate("abcd")]
    extra = {"score": 1.0, "mismatched": [{"content": "x", "score": 0.2}]}
    found = scored_replies([Conversation(talk, metadata=extra)])
    assert [(s.messages, s.reply, s.score) for s in found] == [(talk[:3], "d", 1.0), (talk[:3], "x", 0.2)]


def test_a_score_of_plain_text_is_of_the_whole():
    chat = Conversation([{"role": "text", "content": "could you?"}], "a.csv:2", {"score": 17.0})
    assert scored_replies([chat]) == [ScoredReply([], "could you?", 17.0, "a.csv:2")]


def test_pairs_are_the_fitting_reply_over_each_mismatched_one_of_a_lower_score(strictbot):
    splits, raw = strictbot
    chats = chats_of(splits)
    found = preference_pairs(chats)
    assert len(found) == len(scored_replies(chats)) - sum("score" in row for row in raw.values())
    assert len(found) > 5000
    for pair in found:
        row = raw[pair.source]
        lower = {other["content"]: other["score"] for other in row["mismatched"]}
        assert [*pair.messages, {"role": "assistant", "content": pair.chosen}] == row["messages"]
        assert pair.margin == row["score"] - lower[pair.rejected] > 0


TALK = [{"role": ("user", "assistant")[i % 2], "content": word} for i, word in enumerate("abcd")]


def test_a_mismatched_reply_that_is_as_good_or_better_makes_no_pair():
    others = [{"content": c, "score": s} for c, s in (("x", 0.2), ("y", 0.5), ("z", 0.9))]
    assert preference_pairs([Conversation(TALK, "a:1", {"score": 0.5, "mismatched": others})]) == [
        PreferencePair(TALK[:3], "d", "x", 0.3, "a:1")
    ]
    assert (
        preference_pairs(
            [
                Conversation(TALK, metadata={"mismatched": others}),
                Conversation(TALK, metadata={"score": 1.0}),
                Conversation(TALK),
            ]
        )
        == []
    )


def test_a_rejected_reply_makes_a_pair_whose_margin_may_be_untold():
    untold, told = (
        Conversation(TALK, "a:1", {"rejected": "x"}),
        Conversation(TALK, "a:2", {"rejected": "x", "margin": 2.0}),
    )
    assert preference_pairs([untold, told]) == [
        PreferencePair(TALK[:3], "d", "x", 0.0, "a:1"),
        PreferencePair(TALK[:3], "d", "x", 2.0, "a:2"),
    ]
    text = Conversation([{"role": "text", "content": "a"}], metadata={"rejected": "x"})
    assert preference_pairs([text]) == [PreferencePair([], "a", "x")]


def test_the_digest_covers_what_reward_models_learn_from_and_no_other_field():
    other = {"content": "x", "score": 0.2}
    extras = [
        {},
        {"score": 0.5},
        {"score": 0.6},
        {"score": 0.6, "mismatched": [other]},
        {"score": 0.6, "mismatched": [other | {"score": 0.3}]},
        {"score": 0.6, "mismatched": [other | {"content": "y"}]},
        {"rejected": "x"},
        {"rejected": "y"},
        {"rejected": "y", "margin": 1.0},
    ]
    digests = [data_digest([Conversation(TALK, metadata=extra)]) for extra in extras]
    assert len(set(digests)) == len(extras)
    assert [data_digest([Conversation(TALK, metadata=extra | {"id": 7})]) for extra in extras] == digests


def test_the_digest_tells_whose_score_it_is():
    one, two = Conversation(TALK[:2], metadata={"score": 1.0}), Conversation(TALK[:2], metadata={"score": 0.0})
    assert data_digest([one, two]) != data_digest([two, one])


def test_text_and_lone_replies_wait_for_no_answer():
    assert (
        prompts_of([Conversation([{"role": "text", "content": "a"}]), Conversation([{"role": "user", "content": "a"}])])
        == []
    )


def test_a_prompt_leaves_out_what_follows_the_last_reply():
    talk = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    [prompt] = prompts_of([Conversation(talk)])
    assert (prompt.messages, prompt.reference) == (talk[:1], "b")


def test_the_digest_tells_any_change_of_the_rows(strictbot):
    chats = strictbot[0].validation
    assert data_digest(chats) == data_digest(list(chats))
    changed = [dict(m) for m in chats[-1].messages]
    changed[-1]["content"] += "!"
    others = [
        [*chats[:-1], replace(chats[-1], messages=changed)],
        chats[:-1],
        [*chats, chats[-1]],
        [chats[1], chats[0], *chats[2:]],
    ]
    assert len({data_digest(c) for c in [chats, *others]}) == 5


def test_the_digest_is_of_what_is_learned_not_of_where_it_stands():
    talk = [{"role": "user", "content": "a"}, {"content": "b", "role": "assistant"}]
    moved = Conversation([{"content": "a", "role": "user"}, {"role": "assistant", "content": "b"}], "other.jsonl:9")
    assert data_digest([Conversation(talk, "data.jsonl:1")]) == data_digest([moved])
