"""The prompts of a row: for the assistant, for the user, and for plain texts to be continued."""

import pytest

from manners.data.rendering import prompt_text, text_before_reply
from manners.data.reward_examples import reward_examples
from manners.data.tokenize import IGNORE_INDEX, tokenize, with_reply
from manners.data.types import Conversation, Prompt, data_digest, distinct_prompts, prompts_of
from manners.models.tokenizer import load_tokenizer
from tests.data.files import read, write

TURNS = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
EOS_MARKER = "<|endoftext|>"


def chat(*turns, **more):
    return Conversation([{"role": r, "content": c} for r, c in turns], **more)


def trained_text(example, tokenizer):
    return tokenizer.decode([label for label in example.labels if label != IGNORE_INDEX])


def test_prompts_of_last_reply_or_each_user_turn():
    assert [(len(p.messages), p.reference) for p in prompts_of([chat(*TURNS)])] == [(3, "d")]
    assert [(len(p.messages), p.reference) for p in prompts_of([chat(*TURNS)], "user")] == [(0, "a"), (2, "c")]


def test_prompts_of_user_omit_masked_turns_and_conversation_eos():
    with_eos = chat(*TURNS, ("user", EOS_MARKER), masked_turns=(0,), metadata={"conversation_eos_turn": 4})
    assert [p.reference for p in prompts_of([with_eos], "user")] == ["c"]


def test_prompts_of_plain_text_are_its_first_words():
    text, short = chat(("text", " Could you  tell me more? ")), chat(("text", "Could you"))
    (prompt,) = prompts_of([text, short], prefix_words=2)
    assert (prompt.messages, prompt.reference) == ([{"role": "text", "content": " Could you"}], "tell me more? ")
    assert prompts_of([text]) == []


@pytest.mark.parametrize(
    "continuation, text",
    [("tell me?", "Could you tell me?"), (", please?", "Could you, please?"), ("’d", "Could you’d")],
)
def test_with_reply_joins_a_continuation_to_one_text(continuation, text):
    prefix = [{"role": "text", "content": "Could you"}]
    assert with_reply(prefix, continuation).messages == [{"role": "text", "content": text}]


def test_reward_example_of_a_continued_text_is_that_of_the_text(tokenizer):
    prefix = [{"role": "text", "content": "The heron"}]
    (continued,) = reward_examples([(prefix, "eats fish.")], tokenizer, 64, decoder=True)
    (full,) = reward_examples([([], "The heron eats fish.")], tokenizer, 64, decoder=True)
    assert continued == full


def test_masked_turn_carries_no_loss_and_changes_the_digest(tokenizer):
    unmasked, masked = chat(*TURNS), chat(*TURNS, masked_turns=(1,))
    (both,), (last,) = (tokenize([c], tokenizer, "assistant", 99) for c in (unmasked, masked))
    assert trained_text(both, tokenizer) == "b<|im_end|>d<|im_end|>"
    assert trained_text(last, tokenizer) == "d<|im_end|>"
    assert both.input_ids == last.input_ids
    assert data_digest([unmasked]) != data_digest([masked])


@pytest.mark.parametrize(
    "template, expected", [("chatml", "<|im_start|>user\n"), ("plain", "User:"), ("marked", "<|user|>")]
)
def test_prompt_text_opens_a_user_turn_like_the_template(template, expected):
    tokenizer = load_tokenizer("tiny", chat_template=template)
    assert prompt_text([], tokenizer, "user") == expected
    turns = chat(*TURNS[:2]).messages
    rendered = tokenizer.apply_chat_template(chat(*TURNS[:3]).messages, tokenize=False)
    assert prompt_text(turns, tokenizer, "user").endswith(expected)
    assert rendered.startswith(prompt_text(turns, tokenizer, "user"))
    after = tokenizer.apply_chat_template(chat(*TURNS).messages, tokenize=False).split("c")[-1]
    assert text_before_reply(tokenizer) and after.startswith(text_before_reply(tokenizer))


def test_prompt_text_of_plain_text_is_the_text(tokenizer):
    assert prompt_text([{"role": "text", "content": "Could you"}], tokenizer) == "Could you"


def test_conversation_eos_is_a_trained_user_turn(tmp_path, tokenizer):
    file = write(tmp_path, {"messages": chat(*TURNS[:2]).messages}, {"messages": chat(*TURNS[:3]).messages})
    ended, open_ended = read(
        file, loss_roles="user", conversation_eos=EOS_MARKER, validation_share=0, test_share=0
    ).train
    assert (
        ended.messages[-1] == {"role": "user", "content": EOS_MARKER} and ended.metadata["conversation_eos_turn"] == 2
    )
    assert open_ended.messages == chat(*TURNS[:3]).messages
    (example,) = tokenize([ended], tokenizer, "user", 99)
    assert trained_text(example, tokenizer) == f"a<|im_end|>{EOS_MARKER}<|im_end|>"


def test_distinct_prompts_are_the_first_of_equal_ones_in_order():
    def prompt(text, reply):
        return Prompt([{"role": "user", "content": text}], reply)

    prompts = [prompt("b", "1"), prompt("a", "2"), prompt("b", "3"), prompt("c", "4"), prompt("a", "5")]
    assert distinct_prompts(prompts) == [prompts[0], prompts[1], prompts[3]]
    assert distinct_prompts([]) == []
    openings = [Prompt([], "Hello."), Prompt([], "Hi."), Prompt([], "Hello.")]
    assert distinct_prompts(openings) == openings
    categories = [Prompt(prompts[0].messages, metadata={"category": name}) for name in "xyx"]
    assert distinct_prompts(categories) == categories[:2]
