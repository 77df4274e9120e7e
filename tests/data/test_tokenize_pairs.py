"""Pairs as DPO reads them: the tokens of each side are those that SFT would learn of the same conversation."""

import pytest

from manners.data.tokenize import IGNORE_INDEX, tokenize, tokenize_pairs, truncate_pair
from manners.data.types import Conversation, PreferencePair
from manners.models.loading import load_tokenizer

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


def learned(example):
    """The tokens that carry loss in the last reply, and all that stand before it, as SFT has them."""
    last = max(i for i, label in enumerate(example.labels) if label != IGNORE_INDEX)
    first = last
    while first and example.labels[first - 1] != IGNORE_INDEX:
        first -= 1
    return example.input_ids[:first], example.input_ids[first : last + 1]


@pytest.mark.parametrize("template", ["auto", "chatml", "plain", "marked"])
@pytest.mark.parametrize("pair", PAIRS, ids=["one turn", "three turns", "system, and nothing said"])
def test_each_side_has_the_tokens_that_sft_learns(template, pair):
    tokenizer = load_tokenizer("tiny", chat_template=template)
    (row,) = tokenize_pairs([pair], tokenizer, 512)
    for side in ("chosen", "rejected"):
        chat = Conversation([*pair.messages, {"role": "assistant", "content": getattr(pair, side)}])
        (example,) = tokenize([chat], tokenizer, "assistant", 512)
        prompt, reply = learned(example)
        assert (row["prompt_ids"], row[f"{side}_ids"]) == (prompt, reply)
        assert reply[-1] in (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>"))


def test_a_line_break_that_a_tokenizer_joins_to_the_prompt_changes_no_token():
    """ "<|assistant|>\\n" and a reply of "\\n\\n..." share a token, so of both replies one token more carries loss."""
    tokenizer = load_tokenizer("tiny", chat_template="marked")
    (row,) = tokenize_pairs([PreferencePair(TURNS, "A\n\nB", "\n\nA line of its own.")], tokenizer, 512)
    for side, reply in (("chosen", "A\n\nB"), ("rejected", "\n\nA line of its own.")):
        (example,) = tokenize(
            [Conversation([*TURNS, {"role": "assistant", "content": reply}])], tokenizer, "assistant", 512
        )
        prompt, learned_reply = learned(example)
        assert row["prompt_ids"] + row[f"{side}_ids"] == prompt + learned_reply
        assert len(prompt) - len(row["prompt_ids"]) == 1


def test_plain_texts_have_no_prompt(tokenizer):
    (row,) = tokenize_pairs([PreferencePair([], "The fox is red.", "The fox.")], tokenizer, 512)
    assert row["prompt_ids"] == []
    for side, text in (("chosen", "The fox is red."), ("rejected", "The fox.")):
        (example,) = tokenize([Conversation([{"role": "text", "content": text}])], tokenizer, "assistant", 512)
        assert row[f"{side}_ids"] == example.input_ids
        assert row[f"{side}_ids"][-1] == tokenizer.eos_token_id


def test_the_oldest_of_the_prompt_gives_way_for_both_alike():
    cut = truncate_pair([1, 2, 3, 4, 5, 6], [7, 8], [1, 2, 3, 4, 5, 6], [9, 9, 9, 9], 8)
    assert cut == {"prompt_ids": [3, 4, 5, 6], "chosen_ids": [7, 8], "rejected_ids": [9, 9, 9, 9]}


def test_a_reply_too_long_loses_its_end_and_half_of_the_room_is_the_prompts():
    cut = truncate_pair([1, 2, 3, 4, 5, 6], [7] * 9, [1, 2, 3, 4, 5, 6], [8, 9], 8)
    assert cut == {"prompt_ids": [3, 4, 5, 6], "chosen_ids": [7] * 4, "rejected_ids": [8, 9]}
    assert truncate_pair([1], [7] * 9, [1], [8], 8) == {"prompt_ids": [1], "chosen_ids": [7] * 7, "rejected_ids": [8]}


def test_where_a_tokenizer_joins_the_prompts_end_to_a_reply_that_end_counts_to_the_replies():
    assert truncate_pair([1, 2, 3], [4], [1, 2, 5], [6], 8) == {
        "prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5, 6],
    }  # fmt: skip
