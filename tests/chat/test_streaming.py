"""What the model is given, and what of its tokens is shown when."""

import pytest
import torch

from manners.chat.session import Session, add_turn
from manners.chat.streaming import SamplingState, prompt_ids, stream_reply, decode_stream
from manners.errors import MannersError
from manners.evaluation.generate import generate_texts as answer
from manners.models.generation import Sampling, generate_ids, stream_tokens
from manners.models.loading import load_tokenizer, stop_token_ids
from tests.chat import checkpoints
from tests.families import DECODERS, language_model

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3]]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat_model")
    return checkpoints.load(checkpoints.adapter(checkpoints.base(folder), folder / "run"))


def sampling_state_of(seed=0, temperature=0.7, length=40):
    return SamplingState(length, temperature, torch.Generator().manual_seed(seed))


def conversation(*words, **changes):
    session = Session(**changes)
    for i, line in enumerate(words):
        session = add_turn(session, ("user", "assistant")[i % 2], line)
    return session


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_stream_is_what_generate_gives(family, temperature):
    model, uniforms = language_model(family), torch.rand(len(PROMPTS), 25, generator=torch.Generator().manual_seed(1))
    endless = generate_ids(model, PROMPTS, Sampling(25, (), 0, temperature), uniforms)
    sampling = Sampling(25, (endless[0][6],), 0, temperature)
    full = generate_ids(model, PROMPTS, sampling, uniforms)
    streamed = [list(stream_tokens(model, p, sampling, row)) for p, row in zip(PROMPTS, uniforms, strict=True)]
    assert streamed == full
    assert len(full[0]) <= 7 < len(endless[0])


def test_a_stream_gives_each_token_before_it_computes_the_next():
    model, passes = language_model("qwen2"), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    tokens = stream_tokens(model, PROMPTS[0], Sampling(25, (), 0))
    for count in (1, 2, 3):
        next(tokens)
        assert len(passes) == count
    assert torch.is_grad_enabled()  # between tokens, the caller's own
    with pytest.raises(ValueError, match="uniforms"):
        next(stream_tokens(model, PROMPTS[0], Sampling(25, (), 0, temperature=1.0)))


@pytest.mark.parametrize("system", [None, "Be blunt."])
def test_many_turns_are_rendered_as_the_template_renders_the_whole(chat_model, system):
    session = conversation("Hello.", "What?", "What is a rose?", system=system)
    ids, left_out = prompt_ids(session, chat_model, 40)
    full = chat_model.tokenizer.apply_chat_template(
        [{"role": "system", "content": system}] * bool(system)
        + [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "What?"},
            {"role": "user", "content": "What is a rose?"},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert chat_model.tokenizer.decode(ids) == full
    assert left_out == 0


def test_as_the_user_it_opens_and_goes_on(chat_model):
    opening, _ = prompt_ids(Session(role="user"), chat_model, 40)
    assert chat_model.tokenizer.decode(opening) == "<|im_start|>user\n"
    later, _ = prompt_ids(conversation("Hi.", "Good day.", role="user"), chat_model, 40)
    expected = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nGood day.<|im_end|>\n<|im_start|>user\n"
    assert chat_model.tokenizer.decode(later) == expected


def test_a_long_conversation_loses_its_oldest_turns_and_leaves_room_for_the_reply(chat_model):
    """The model reads 256 tokens."""
    session = conversation(*(["The hare eats grass. " * 4] * 16), "What is a rose?")
    ids, left_out = prompt_ids(session, chat_model, 40)
    assert 100 < len(ids) <= 216
    assert left_out % 2 == 0 < left_out
    assert chat_model.tokenizer.decode(ids).startswith("<|im_start|>user\nThe hare")
    assert len(prompt_ids(session, chat_model, 1000)[0]) <= 128  # a reply gets no more than half
    with pytest.raises(MannersError, match="context of 216 tokens: shorten it"):
        prompt_ids(conversation("The hare eats grass. " * 100), chat_model, 40)


def test_a_template_that_refuses_the_conversation_is_answered_in_words(chat_model):
    own = chat_model.tokenizer.chat_template
    chat_model.tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    try:
        with pytest.raises(MannersError, match=r"no system here. Remove the system message by /system"):
            prompt_ids(conversation("Hi.", system="S"), chat_model, 40)
    finally:
        chat_model.tokenizer.chat_template = own


@pytest.mark.parametrize("role", ["assistant", "user"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_was_streamed_is_what_evaluation_would_have_read(chat_model, role, temperature):
    """One reply by the same uniforms: ``generate`` of evaluate.py, whose uniforms are a batch's first row."""
    session = conversation("What would you feed to a hare?", *["Grass."] * (role == "user"), role=role)
    settings = {"max_new_tokens": 40, "do_sample": temperature > 0, "temperature": temperature, "role": role}
    for seed in range(3):
        (reply,) = answer(chat_model.model, chat_model.tokenizer, [session.messages], seed=seed, **settings)
        sampling_state = sampling_state_of(seed, temperature)
        chunks = list(stream_reply(chat_model, prompt_ids(session, chat_model, 40)[0], role, sampling_state, sampling_state.draw_uniforms()))
        assert "".join(chunks) == reply.text
        assert len(chunks) > 5


def decode_text(tokenizer, text, end=""):
    return list(decode_stream(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer, end))


def test_no_half_of_a_character_is_ever_shown(tokenizer):
    """The tiny base has no tokens for these: they come byte by byte."""
    text = "naïve 日本語 🦔🦔 end"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    halves = [n for n in range(len(ids)) if "\ufffd" in tokenizer.decode(ids[:n])]
    assert len(halves) > 8
    shown = decode_text(tokenizer, text)
    assert "".join(shown) == text
    assert "\ufffd" not in "".join(shown)
    assert len(shown) > 5
    broken = ids[: halves[-1]]  # a reply that the limit cut within a character says so at its end
    assert "".join(decode_stream(broken, tokenizer)) == tokenizer.decode(broken)


def test_space_around_a_reply_is_no_part_of_it_and_stop_tokens_are_not_shown(tokenizer):
    assert "".join(decode_text(tokenizer, "\n  Yes.  No. \n<|im_end|>")) == "Yes.  No."
    assert decode_text(tokenizer, "<|im_end|>") == []


def test_a_users_turn_ends_where_the_template_opens_the_reply(tokenizer):
    end = "\nAssistant:"
    chunks = decode_text(tokenizer, "Hi.\nAssist me.\nAssistant: Yes.\nUser: No.", end)
    assert "".join(chunks) == "Hi.\nAssist me."
    assert not [p for p in chunks if p.endswith("\nAss")]
    assert "".join(decode_text(tokenizer, "Hi.\nAss", end)) == "Hi.\nAss"  # what only looked like it is shown at the end


def test_a_plain_template_ends_the_users_turn_in_the_stream(tmp_path):
    folder = checkpoints.base(tmp_path)
    plain = load_tokenizer(str(folder), chat_template="plain")
    plain.save_pretrained(folder)
    chat_model = checkpoints.load(folder)
    reply = chat_model.tokenizer("Hello there.\nAssistant: Hi.", add_special_tokens=False)["input_ids"]
    assert set(reply).isdisjoint(stop_token_ids(chat_model.model, chat_model.tokenizer))
    expected = iter(reply)
    chat_model.model.forward = lambda **_: type("Out", (), {"logits": one_hot(next(reply_ids))})
    sampling_state = sampling_state_of(temperature=0.0)
    ids, _ = prompt_ids(Session(role="user"), chat_model, 40)
    assert chat_model.tokenizer.decode(ids) == "User:"
    assert "".join(stream_reply(chat_model, ids, "user", sampling_state, sampling_state.draw_uniforms())) == "Hello there."


def one_hot(token):
    logits = torch.zeros(1, 1, 3072)
    logits[0, 0, token] = 1.0
    return logits
