"""What a row gives a model to answer or to learn: as the assistant, as the user, or as the writer of a plain text."""

import pytest

from manners.data.reward_examples import reward_examples
from manners.data.tokenize import IGNORE_INDEX, continue_text, prompt_text, reply_follows, tokenize, with_reply
from manners.data.types import Conversation, data_digest, prompts_of
from manners.errors import MannersError
from manners.models.loading import load_tokenizer
from tests.data.files import read, write

TALK = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
END = "<|endoftext|>"


def chat(*turns, **more):
    return Conversation([{"role": r, "content": c} for r, c in turns], **more)


def trained(example, tokenizer):
    return tokenizer.decode([label for label in example.labels if label != IGNORE_INDEX])


def test_the_assistant_answers_the_last_turn_and_the_user_every_turn_of_its_own():
    assert [(len(p.messages), p.reference) for p in prompts_of([chat(*TALK)])] == [(3, "d")]
    assert [(len(p.messages), p.reference) for p in prompts_of([chat(*TALK)], "user")] == [(0, "a"), (2, "c")]


def test_the_user_is_not_asked_for_turns_that_another_row_has_or_for_the_end():
    ended = chat(*TALK, ("user", END), masked_turns=(0,), metadata={"ends": 4})
    assert [p.reference for p in prompts_of([ended], "user")] == ["c"]


def test_a_plain_text_gives_its_first_words_and_only_where_more_follow():
    text, short = chat(("text", " Could you  tell me more? ")), chat(("text", "Could you"))
    (prompt,) = prompts_of([text, short], words=2)
    assert (prompt.messages, prompt.reference) == ([{"role": "text", "content": " Could you"}], "tell me more? ")
    assert prompts_of([text]) == []


@pytest.mark.parametrize(
    "rest, whole", [("tell me?", "Could you tell me?"), (", please?", "Could you, please?"), ("’d", "Could you’d")]
)
def test_what_is_continued_reads_as_one_text(rest, whole):
    opening = [{"role": "text", "content": "Could you"}]
    assert continue_text("Could you", rest) == whole
    assert with_reply(opening, rest).messages == [{"role": "text", "content": whole}]


def test_a_reward_model_reads_a_continued_text_as_if_it_had_been_whole(tokenizer):
    opening = [{"role": "text", "content": "The heron"}]
    (begun,) = reward_examples([(opening, "eats fish.")], tokenizer, 64, decoder=True)
    (whole,) = reward_examples([([], "The heron eats fish.")], tokenizer, 64, decoder=True)
    assert begun == whole


def test_a_silent_turn_carries_no_loss_and_changes_the_digest(tokenizer):
    heard, silent = chat(*TALK), chat(*TALK, masked_turns=(1,))
    (all_of_it,), (rest,) = (tokenize([c], tokenizer, "assistant", 99) for c in (heard, silent))
    assert trained(all_of_it, tokenizer) == "b<|im_end|>d<|im_end|>"
    assert trained(rest, tokenizer) == "d<|im_end|>"
    assert all_of_it.input_ids == rest.input_ids
    assert data_digest([heard]) != data_digest([silent])


@pytest.mark.parametrize(
    "template, opened", [("chatml", "<|im_start|>user\n"), ("plain", "User:"), ("marked", "<|user|>")]
)
def test_the_users_turn_is_opened_as_the_template_opens_it(template, opened):
    tokenizer = load_tokenizer("tiny", chat_template=template)
    assert prompt_text([], tokenizer, "user") == opened
    said = chat(*TALK[:2]).messages
    whole = tokenizer.apply_chat_template(chat(*TALK[:3]).messages, tokenize=False)
    assert prompt_text(said, tokenizer, "user").endswith(opened)
    assert whole.startswith(prompt_text(said, tokenizer, "user"))
    after = tokenizer.apply_chat_template(chat(*TALK).messages, tokenize=False).split("c")[-1]
    assert reply_follows(tokenizer) and after.startswith(reply_follows(tokenizer))


def test_a_plain_text_is_given_to_the_model_as_it_is(tokenizer):
    assert prompt_text([{"role": "text", "content": "Could you"}], tokenizer) == "Could you"


def test_the_user_learns_when_the_conversation_is_over(tmp_path, tokenizer):
    file = write(tmp_path, {"messages": chat(*TALK[:2]).messages}, {"messages": chat(*TALK[:3]).messages})
    over, goes_on = read(file, loss_roles="user", conversation_eos=END, validation_share=0, test_share=0).train
    assert over.messages[-1] == {"role": "user", "content": END} and over.metadata["ends"] == 2
    assert goes_on.messages == chat(*TALK[:3]).messages
    (example,) = tokenize([over], tokenizer, "user", 99)
    assert trained(example, tokenizer) == f"a<|im_end|>{END}<|im_end|>"


def test_sft_on_high_scores_leaves_the_lower_training_rows_and_all_of_the_test(tmp_path):
    rows = [{"text": f"row {i}", "score": i, "split": "train"} for i in range(8)]
    rows += [{"text": "v", "score": 1, "split": "validation"}, {"text": "t", "score": 0, "split": "test"}]
    splits = read(write(tmp_path, *rows), min_score_quantile=0.75)
    assert [c.metadata["score"] for c in splits.train] == [6, 7]
    assert (len(splits.validation), len(splits.test)) == (0, 1)
    assert splits.notes == ["6 of 8 train rows: score below 6", "1 of 1 validation rows: score below 6"]
    with pytest.raises(MannersError, match="no training row has a score"):
        read(write(tmp_path, {"text": "x"}), min_score_quantile=0.5, validation_share=0, test_share=0)


def test_sft_on_every_reply_has_the_misfits_as_rows_of_their_own_and_leaves_the_test(tmp_path):
    said = {"messages": chat(*TALK[:2]).messages, "score": 1.0, "mismatched": [{"content": "no", "score": 0.2}]}
    rows = [said | {"split": split} for split in ("train", "validation", "test")]
    splits = read(write(tmp_path, *rows), include_alternatives=True)
    for kept in (splits.train, splits.validation):
        assert [(c.messages[-1]["content"], c.metadata["score"]) for c in kept] == [("b", 1.0), ("no", 0.2)]
        assert [c.messages[:-1] for c in kept] == [said["messages"][:-1]] * 2
    assert [c.metadata["mismatched"] for c in splits.test] == [said["mismatched"]]


def test_dolly_and_guanaco_are_known_by_their_fields(tmp_path):
    dolly = {"instruction": "Say it.", "context": "", "response": "It.", "category": "open_qa"}
    given = dolly | {"context": "A text."}
    guanaco = {"text": "### Human: Say it.### Assistant: It.### Human: Again?### Assistant: It."}
    one, two = read(write(tmp_path, dolly, given), validation_share=0, test_share=0).train
    assert [m["content"] for m in one.messages] == ["Say it.", "It."] and one.metadata == {"category": "open_qa"}
    assert two.messages[0]["content"] == "Say it.\n\nA text."
    (talk,) = read(write(tmp_path, guanaco), validation_share=0, test_share=0).train
    assert [(m["role"], m["content"]) for m in talk.messages] == [
        ("user", "Say it."), ("assistant", "It."), ("user", "Again?"), ("assistant", "It."),
    ]  # fmt: skip
    with pytest.raises(MannersError, match="field 'instruction'"):
        read(write(tmp_path, dolly, dolly | {"instruction": ""}))
