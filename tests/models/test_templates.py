"""The template that is saved gives every program the tokens of training: one BOS, no lost thoughts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from manners.data.reward_examples import reward_examples
from manners.data.tokenize import IGNORE_INDEX, UNLIMITED, prompt_ids, tokenize, tokenize_pairs
from manners.data.types import Conversation, PreferencePair
from manners.errors import MannersError
from manners.models.loading import stop_token_ids
from manners.models.templates import TEMPLATES, adapted_for_training
from manners.models.tokenizer import load_tokenizer
from tests import hub_models
from tests.families import language_model
from tests.template_tokenizers import TRL_TEMPLATES, template_tokenizer

TURNS = [
    ("system", "Be brief."),
    ("user", "Hi there, " * 30),
    ("assistant", "Yes."),
    ("user", "Bye"),
    ("assistant", "No."),
]
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]


@pytest.fixture(scope="module", params=["llama", "byte_level"])
def base_folder(request, tmp_path_factory):
    """The folder of a tokenizer that puts BOS before a text and has no chat template, as Llama's and Gemma's."""
    if request.param == "llama":
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=hub_models.llama(), bos_token="<s>", eos_token="</s>")
    else:
        tokenizer = template_tokenizer("")
    tokenizer.chat_template = None
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_own_templates_write_one_bos_everywhere(base_folder, template, tmp_path):
    added = ["<|im_start|>", "<|im_end|>"] if template == "chatml" else []
    tokenizer = load_tokenizer(str(base_folder), chat_template=template, added_tokens=added)
    bos, conversation = tokenizer.bos_token_id, Conversation(MESSAGES)
    prompt = prompt_ids(MESSAGES[:-1], tokenizer)
    inputs = {
        "prompt": prompt,
        "short prompt": prompt_ids(MESSAGES[:-1], tokenizer, max_length=20),
        "user's prompt": prompt_ids([], tokenizer, "user"),
        "row": tokenize([conversation], tokenizer, "assistant", UNLIMITED)[0].input_ids,
        "short row": tokenize([conversation], tokenizer, "assistant", 40)[0].input_ids,
        "pair": tokenize_pairs([PreferencePair(MESSAGES[:-1], "No.", "Yes.")], tokenizer, 40)[0]["prompt_ids"],
        "reward": reward_examples([(MESSAGES[:-1], "No.")], tokenizer, 40, decoder=True)[0].input_ids,
    }
    tokenizer.save_pretrained(tmp_path)
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    plain = saved.apply_chat_template(MESSAGES[:-1], add_generation_prompt=True)["input_ids"]
    assert plain == prompt
    for name, ids in inputs.items():
        assert (ids[0], ids.count(bos)) == (bos, 1), name
    assert load_tokenizer(str(tmp_path)).chat_template == tokenizer.chat_template


def test_plain_text_has_one_bos_without_loss(base_folder):
    tokenizer = load_tokenizer(str(base_folder), require_template=False)
    text = [{"role": "text", "content": "A cat sat there. " * 20}]
    for length in (UNLIMITED, 12):
        [example] = tokenize([Conversation(text)], tokenizer, "assistant", length)
        prompt = prompt_ids(text, tokenizer, max_length=length)
        assert example.input_ids[0] == prompt[0] == tokenizer.bos_token_id != example.input_ids[1]
        assert example.labels[0] == IGNORE_INDEX and IGNORE_INDEX not in example.labels[1:]
        assert len(prompt) <= length and prompt.count(tokenizer.bos_token_id) == 1
    expected = tokenizer(text[0]["content"])["input_ids"]
    assert prompt_ids(text, tokenizer) == expected


def test_texts_with_bos_share_no_prompt(base_folder):
    tokenizer = load_tokenizer(str(base_folder), require_template=False)
    examples = reward_examples([([], "A cat."), ([], "A dog.")], tokenizer, 40, decoder=True)
    assert [e.prompt_length for e in examples] == [0, 0]
    assert all(e.input_ids[0] == tokenizer.bos_token_id for e in examples)


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_tokenizers_without_bos_get_none(template):
    tokenizer = load_tokenizer("tiny", chat_template=template)
    assert tokenizer.chat_template == TEMPLATES[template]
    tokenizer = template_tokenizer(TEMPLATES[template], adds_bos=False)
    assert tokenizer.bos_token_id not in prompt_ids(MESSAGES[:-1], tokenizer)


def test_training_template_keeps_thoughts_of_older_turns():
    tokenizer = template_tokenizer(TRL_TEMPLATES["qwen3"], adds_bos=False)
    thought = "<think>\nA greeting.\n</think>\n\nHello"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": thought}] * 2
    assert tokenizer.apply_chat_template(turns, tokenize=False).count("A greeting.") == 1
    tokenizer.chat_template = adapted_for_training(tokenizer)
    assert tokenizer.apply_chat_template(turns, tokenize=False).count("A greeting.") == 2
    assert "generation" not in tokenizer.chat_template.partition("-#}")[2].replace("add_generation_prompt", "")


@pytest.mark.parametrize("name", ["qwen2_5", "gemma", "llama3", "phi3"])
def test_training_template_keeps_templates_that_work(name):
    tokenizer = template_tokenizer(TRL_TEMPLATES[name])
    expected = tokenizer.apply_chat_template(MESSAGES[1:], tokenize=False)
    tokenizer.chat_template = adapted_for_training(tokenizer)
    assert tokenizer.apply_chat_template(MESSAGES[1:], tokenize=False).removeprefix("<bos>") == expected.removeprefix(
        "<bos>"
    )


@pytest.mark.parametrize("name", ["phi3", "llama3_1", "gemma", "cohere", "gptoss"])
def test_stop_token_ids_hold_what_training_teaches(name):
    tokenizer = template_tokenizer(TRL_TEMPLATES[name])
    model = language_model("llama")
    model.generation_config.eos_token_id = None
    [example] = tokenize([Conversation(MESSAGES[1:])], tokenizer, "assistant", UNLIMITED)
    ends = {
        token
        for token, following in zip(example.labels, [*example.labels[1:], IGNORE_INDEX], strict=True)
        if token != IGNORE_INDEX == following
    }
    assert ends <= set(stop_token_ids(model, tokenizer))
    assert torch.tensor(stop_token_ids(model, tokenizer)).unique().numel() == len(stop_token_ids(model, tokenizer))


@given(st.lists(st.text("Hi ,\n▁é🙂<s></s>", min_size=1, max_size=9).filter(str.strip), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_rows_begin_with_their_prompts_and_one_bos(base_folder, turns):
    tokenizer = load_tokenizer(str(base_folder), chat_template="plain")
    conversation = Conversation([{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)])
    try:
        [example] = tokenize([conversation], tokenizer, "assistant", UNLIMITED)
    except MannersError as error:
        assert "merges the beginning of a reply" in str(error)
        return
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.eos_token_id]
    assert [i for i in example.input_ids if i in special] == special
    for turn in (1, 3):
        prompt = prompt_ids(conversation.messages[:turn], tokenizer)
        assert example.input_ids[: len(prompt)] == prompt
        assert example.labels[len(prompt)] != IGNORE_INDEX


def test_added_tokens_of_the_text_stay_tokens_in_it():
    added = ["<|user|>", "<|assistant|>", "<laugh>"]
    tokenizer = load_tokenizer("tiny", chat_template="marked", added_tokens=added)
    turns = [{"role": "user", "content": "Hi <|user|>"}, {"role": "assistant", "content": "Hello <laugh>"}]
    [example] = tokenize([Conversation(turns)], tokenizer, "assistant", UNLIMITED)
    counts = [example.input_ids.count(tokenizer.convert_tokens_to_ids(token)) for token in added]
    assert counts == [1, 1, 1]
    trained = [label for label in example.labels if label != IGNORE_INDEX]
    assert tokenizer.decode(trained, skip_special_tokens=True) == "Hello <laugh>"
