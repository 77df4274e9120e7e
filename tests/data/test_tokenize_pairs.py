"""The pairs of DPO and the replies of KTO: their tokens are those that SFT trains on for the same conversation."""

import pytest

from manners.data.tokenize import (
    IGNORE_INDEX,
    prompt_ids,
    tokenize,
    tokenize_labeled_replies,
    tokenize_pairs,
    truncate_pair,
)
from manners.data.types import Conversation, LabeledReply, PreferencePair
from manners.models.tokenizer import load_tokenizer

TURNS = [
    {"role": "user", "content": "What is a fox?"},
    {"role": "assistant", "content": "The fox is a mammal."},
    {"role": "user", "content": "And a hen?"},
]
PAIRS = [
    PreferencePair(TURNS[:1], "The fox is a mammal.", "A stone."),
    PreferencePair(TURNS, "The hen is a bird.", " No."),
    PreferencePair([{"role": "system", "content": "Be brief."}, *TURNS[:1]], "Mammal.", ""),
]


def prompt_and_reply(example):
    """The tokens before the last reply, and those of the reply that carry loss, as in SFT."""
    last = max(i for i, label in enumerate(example.labels) if label != IGNORE_INDEX)
    first = last
    while first and example.labels[first - 1] != IGNORE_INDEX:
        first -= 1
    return example.input_ids[:first], example.input_ids[first : last + 1]


@pytest.mark.parametrize("template", ["auto", "chatml", "plain", "marked"])
@pytest.mark.parametrize("pair", PAIRS, ids=["one turn", "three turns", "system message and empty reply"])
def test_tokenize_pairs_gives_the_tokens_of_sft(template, pair):
    tokenizer = load_tokenizer("tiny", chat_template=template)
    (row,) = tokenize_pairs([pair], tokenizer, 512)
    for side in ("chosen", "rejected"):
        conversation = Conversation([*pair.messages, {"role": "assistant", "content": getattr(pair, side)}])
        (example,) = tokenize([conversation], tokenizer, "assistant", 512)
        prompt, reply = prompt_and_reply(example)
        assert (row["prompt_ids"], row[f"{side}_ids"]) == (prompt, reply)
        assert reply[-1] in (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>"))


def test_tokenize_pairs_merge_no_token_over_the_boundary():
    """ "<|assistant|>" and a reply of "\\n\\n..." would share a token, and the prompt of inference has none of it."""
    tokenizer = load_tokenizer("tiny", chat_template="marked")
    (row,) = tokenize_pairs([PreferencePair(TURNS, "A\n\nB", "\n\nA line of its own.")], tokenizer, 512)
    for side, reply in (("chosen", "A\n\nB"), ("rejected", "\n\nA line of its own.")):
        (example,) = tokenize(
            [Conversation([*TURNS, {"role": "assistant", "content": reply}])], tokenizer, "assistant", 512
        )
        prompt, trained_reply = prompt_and_reply(example)
        assert row["prompt_ids"] + row[f"{side}_ids"] == prompt + trained_reply
        assert prompt == row["prompt_ids"] == prompt_ids(TURNS, tokenizer)


def test_tokenize_pairs_of_plain_texts_have_no_prompt(tokenizer):
    (row,) = tokenize_pairs([PreferencePair([], "The fox is red.", "The fox.")], tokenizer, 512)
    assert row["prompt_ids"] == []
    for side, text in (("chosen", "The fox is red."), ("rejected", "The fox.")):
        (example,) = tokenize([Conversation([{"role": "text", "content": text}])], tokenizer, "assistant", 512)
        assert row[f"{side}_ids"] == example.input_ids
        assert row[f"{side}_ids"][-1] == tokenizer.eos_token_id


def test_truncate_pair_drops_the_same_prompt_tokens_for_both():
    pair = truncate_pair([1, 2, 3, 4, 5, 6], [7, 8], [1, 2, 3, 4, 5, 6], [9, 9, 9, 9], 8)
    assert pair == {"prompt_ids": [3, 4, 5, 6], "chosen_ids": [7, 8], "rejected_ids": [9, 9, 9, 9]}


def test_truncate_pair_keeps_half_the_length_for_the_prompt():
    pair = truncate_pair([1, 2, 3, 4, 5, 6], [7] * 9, [1, 2, 3, 4, 5, 6], [8, 9], 8)
    assert pair == {"prompt_ids": [3, 4, 5, 6], "chosen_ids": [7] * 4, "rejected_ids": [8, 9]}
    assert truncate_pair([1], [7] * 9, [1], [8], 8) == {"prompt_ids": [1], "chosen_ids": [7] * 7, "rejected_ids": [8]}


def test_truncate_pair_counts_merged_tokens_to_the_replies():
    assert truncate_pair([1, 2, 3], [4], [1, 2, 5], [6], 8) == {
        "prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5, 6],
    }  # fmt: skip


@pytest.mark.parametrize("template", ["auto", "plain"])
@pytest.mark.parametrize("max_length", [512, 24])
def test_labeled_replies_have_the_tokens_of_sft(template, max_length):
    tokenizer = load_tokenizer("tiny", chat_template=template)
    replies = [LabeledReply(p.messages, p.chosen, i == 0) for i, p in enumerate(PAIRS)]
    rows = tokenize_labeled_replies(replies, tokenizer, max_length)
    assert [row["label"] for row in rows] == [True, False, False]
    for reply, row in zip(replies, rows, strict=True):
        conversation = Conversation([*reply.messages, {"role": "assistant", "content": reply.reply}])
        (example,) = tokenize([conversation], tokenizer, "assistant", max_length)
        assert (row["prompt_ids"], row["completion_ids"]) == prompt_and_reply(example)
        assert row["num_truncated"] == example.num_truncated
        assert len(row["prompt_ids"]) + len(row["completion_ids"]) <= max_length
    assert (sum(row["num_truncated"] for row in rows) > 0) == (max_length == 24)
