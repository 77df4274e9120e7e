"""The views of rows: chats, prompts and scored replies, on the packaged corpus."""

import json
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from manners.config import Dataset
from manners.data import readers, source
from manners.data.rows import Chat, Pair, Scored, digest, pairs, prompts, scored


@pytest.fixture(scope="module")
def strictbot():
    """The corpus as the readers give it, and its raw rows by where they stand."""
    splits = readers.read(OmegaConf.structured(Dataset(path="package:strictbot", format="messages")))
    raw = {}
    for path in source.local_path("package:strictbot").glob("*.jsonl"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            raw[f"{path.name}:{number}"] = json.loads(line)
    return splits, raw


def chats_of(splits):
    return [chat for name in readers.SPLITS for chat in getattr(splits, name)]


def test_every_row_of_the_corpus_is_read_into_its_split(strictbot):
    splits, raw = strictbot
    assert len(raw) > 5000
    for name in readers.SPLITS:
        wheres = {c.where for c in getattr(splits, name)}
        assert wheres == {where for where, row in raw.items() if row["split"] == name}
        assert wheres
    assert splits.skipped == []


def test_a_prompt_ends_before_the_last_reply_and_keeps_it_as_reference(strictbot):
    splits, raw = strictbot
    chats = chats_of(splits)
    found = prompts(chats)
    assert len(found) == len(chats) == len(raw)
    for chat, prompt in zip(chats, found, strict=True):
        row = raw[chat.where]
        assert prompt.messages == row["messages"][:-1]
        assert prompt.messages[-1]["role"] == "user"
        assert prompt.reference == row["messages"][-1]["content"]
        assert prompt.extra["category"] == row["category"]
    assert max(len(p.messages) for p in found) >= 5  # turns of several are among them


def test_scored_gives_the_fitting_reply_and_each_mismatched_one(strictbot):
    splits, raw = strictbot
    expected = []
    for row in raw.values():
        if "score" in row:
            replies = [(row["messages"][-1]["content"], row["score"])]
            replies += [(other["content"], other["score"]) for other in row["mismatched"]]
            expected += [(row["messages"][0]["content"], *reply) for reply in replies]
    found = scored(chats_of(splits))
    assert sorted((s.messages[0]["content"], s.reply, s.score) for s in found) == sorted(expected)
    assert all(s.messages == raw[s.where]["messages"][:-1] for s in found)


def test_the_fitting_reply_has_the_highest_score_of_its_row(strictbot):
    best, others = {}, {}
    for s in scored(chats_of(strictbot[0])):
        if s.where in best:
            others.setdefault(s.where, []).append(s.score)
        else:
            best[s.where] = s.score
    assert best.keys() == others.keys()
    assert all(best[where] > max(others[where]) for where in best)


def test_a_row_without_a_score_is_not_scored():
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert scored([Chat(talk)]) == []
    assert [(s.reply, s.score) for s in scored([Chat(talk, extra={"score": 0.5})])] == [("b", 0.5)]


def test_a_score_is_of_the_last_reply_after_all_that_was_said():
    talk = [{"role": ("user", "assistant")[i % 2], "content": word} for i, word in enumerate("abcd")]
    extra = {"score": 1.0, "mismatched": [{"content": "x", "score": 0.2}]}
    found = scored([Chat(talk, extra=extra)])
    assert [(s.messages, s.reply, s.score) for s in found] == [(talk[:3], "d", 1.0), (talk[:3], "x", 0.2)]


def test_a_score_of_plain_text_is_of_the_whole():
    chat = Chat([{"role": "text", "content": "could you?"}], "a.csv:2", {"score": 17.0})
    assert scored([chat]) == [Scored([], "could you?", 17.0, "a.csv:2")]


def test_pairs_are_the_fitting_reply_over_each_mismatched_one_of_a_lower_score(strictbot):
    splits, raw = strictbot
    chats = chats_of(splits)
    found = pairs(chats)
    assert len(found) == len(scored(chats)) - sum("score" in row for row in raw.values())
    assert len(found) > 5000
    for pair in found:
        row = raw[pair.where]
        lower = {other["content"]: other["score"] for other in row["mismatched"]}
        assert [*pair.messages, {"role": "assistant", "content": pair.chosen}] == row["messages"]
        assert pair.margin == row["score"] - lower[pair.rejected] > 0


TALK = [{"role": ("user", "assistant")[i % 2], "content": word} for i, word in enumerate("abcd")]


def test_a_mismatched_reply_that_is_as_good_or_better_makes_no_pair():
    others = [{"content": c, "score": s} for c, s in (("x", 0.2), ("y", 0.5), ("z", 0.9))]
    assert pairs([Chat(TALK, "a:1", {"score": 0.5, "mismatched": others})]) == [Pair(TALK[:3], "d", "x", 0.3, "a:1")]
    assert pairs([Chat(TALK, extra={"mismatched": others}), Chat(TALK, extra={"score": 1.0}), Chat(TALK)]) == []


def test_a_rejected_reply_makes_a_pair_whose_margin_may_be_untold():
    untold, told = Chat(TALK, "a:1", {"rejected": "x"}), Chat(TALK, "a:2", {"rejected": "x", "margin": 2.0})
    assert pairs([untold, told]) == [Pair(TALK[:3], "d", "x", 0.0, "a:1"), Pair(TALK[:3], "d", "x", 2.0, "a:2")]
    text = Chat([{"role": "text", "content": "a"}], extra={"rejected": "x"})
    assert pairs([text]) == [Pair([], "a", "x")]


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
    digests = [digest([Chat(TALK, extra=extra)]) for extra in extras]
    assert len(set(digests)) == len(extras)
    assert [digest([Chat(TALK, extra=extra | {"id": 7})]) for extra in extras] == digests


def test_the_digest_tells_whose_score_it_is():
    one, two = Chat(TALK[:2], extra={"score": 1.0}), Chat(TALK[:2], extra={"score": 0.0})
    assert digest([one, two]) != digest([two, one])


def test_text_and_lone_replies_wait_for_no_answer():
    assert prompts([Chat([{"role": "text", "content": "a"}]), Chat([{"role": "user", "content": "a"}])]) == []


def test_a_prompt_leaves_out_what_follows_the_last_reply():
    talk = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    [prompt] = prompts([Chat(talk)])
    assert (prompt.messages, prompt.reference) == (talk[:1], "b")


def test_the_digest_tells_any_change_of_the_rows(strictbot):
    chats = strictbot[0].validation
    assert digest(chats) == digest(list(chats))
    changed = [dict(m) for m in chats[-1].messages]
    changed[-1]["content"] += "!"
    others = [
        [*chats[:-1], replace(chats[-1], messages=changed)],
        chats[:-1],
        [*chats, chats[-1]],
        [chats[1], chats[0], *chats[2:]],
    ]
    assert len({digest(c) for c in [chats, *others]}) == 5


def test_the_digest_is_of_what_is_learned_not_of_where_it_stands():
    talk = [{"role": "user", "content": "a"}, {"content": "b", "role": "assistant"}]
    moved = Chat([{"content": "a", "role": "user"}, {"role": "assistant", "content": "b"}], "other.jsonl:9")
    assert digest([Chat(talk, "data.jsonl:1")]) == digest([moved])
