"""The packaged reward functions."""

import math
import re

import pytest
import torch

from manners.errors import MannersError
from manners.models.loading import load_model
from manners.rewards.functions import brevity, distinct_bigrams, known_words, length, perplexity, variety


def completions(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def users(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def test_length_is_paid_for_between_its_bounds():
    replies = completions("", "a", "a b", "a b c", "a b c d", "a b c d e f g")
    assert length(replies, at_least=2, at_most=3) == [-1, -0.5, 0, 0, pytest.approx(-1 / 3), pytest.approx(-4 / 3)]


@pytest.mark.parametrize("bounds", [(4, 3), (-1, 3), (0, 0)])
def test_length_refuses_bounds_that_are_no_range(bounds):
    with pytest.raises(MannersError, match=f"at_least={bounds[0]} and at_most={bounds[1]} are no range"):
        length(completions("a"), *bounds)


def test_brevity_costs_one_for_each_further_limit():
    assert brevity(completions("a b", "a b c d e f"), words=2) == [0.0, -2.0]


def test_distinct_bigrams_is_low_for_a_loop():
    assert distinct_bigrams(completions("a b c", "a b a b a b")) == [1.0, pytest.approx(2 / 5)]


def test_variety_is_lost_by_a_sentence_to_another_prompt():
    same, other = "How would you show that it is so?", "Which of the two came first, and how do you know?"
    assert variety(users("a", "b", "c"), completions(same, same, other)) == [-1.0, -1.0, 0.0]
    assert variety(users("a", "b"), completions(same, "How would you show that to me?")) == [
        pytest.approx(-2 / 5),
        pytest.approx(-2 / 4),
    ]


def test_variety_allows_replies_to_one_prompt_to_be_alike():
    same = "How would you show that it is so?"
    assert variety(users("a", "a"), completions(same, same)) == [0.0, 0.0]
    assert variety(users("a", "a", "b"), completions(same, same, same)) == [-1.0, -1.0, -1.0]


def test_variety_is_lost_by_a_sentence_said_twice():
    assert variety(users("a"), completions("What would you do? What would you do?")) == [pytest.approx(-2 / 5)]
    assert variety(users("a", "b"), completions("No.", "")) == [0.0, 0.0]


def test_known_words_counts_words_that_are_none():
    replies = completions("The glorb is a fnip", "The glorb is round", "It is Xylanther", "", "42!")
    prompts = users("Why?", "What is a glorb?", "Who?", "Why?", "Why?")
    assert known_words(prompts, replies) == [pytest.approx(-2 / 5), 0, 0, 0, 0]


def test_perplexity_is_the_loss_of_transformers(tokenizer):
    """Prompts and replies of several lengths in one batch, an empty reply among them."""
    prompts = [*users("Hi", "Bats are birds, as everybody knows."), [{"role": "text", "content": "Once upon"}]]
    replies = ["", "No. Bats are mammals, which fly.", "a time."]
    model, expected = load_model("tiny"), []
    for messages, reply in zip(prompts, replies, strict=True):
        if messages[0]["role"] == "text":
            prompt, whole = "", f"Once upon {reply}{tokenizer.eos_token}"
        else:
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            turns = [*messages, {"role": "assistant", "content": reply}]
            stop = re.escape(tokenizer.eos_token)
            whole = re.search(rf".*{stop}", tokenizer.apply_chat_template(turns, tokenize=False), re.DOTALL)[0]
        ids = torch.tensor([tokenizer(whole)["input_ids"]])
        labels = ids.clone()
        labels[:, : len(tokenizer(prompt)["input_ids"])] = -100
        expected.append(-model(ids, labels=labels).loss.item())
    assert perplexity(prompts, completions(*replies), "tiny") == pytest.approx(expected, abs=1e-4)
    assert -2 * math.log(len(tokenizer)) < min(expected) and max(expected) < 0


def test_perplexity_of_no_model_names_the_option(tmp_path):
    with pytest.raises(MannersError, match=r"^method\.rewards\.fluent\.model_name=.*: the folder has no config\.json"):
        perplexity(users("a"), completions("b"), str(tmp_path), component="fluent")
