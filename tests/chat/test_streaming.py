"""What the model is given, and what of its tokens is shown when."""

import pytest
import torch

from manners.chat.session import Session, add_turn
from manners.chat.streaming import SamplingState, prompt_ids, stream_reply, text_pieces
from manners.errors import MannersError
from manners.evaluation.generate import generate_texts as answer
from manners.models.generation import Sampling, generate_ids, stream_tokens
from manners.models.loading import load_tokenizer, stop_token_ids
from tests.chat import checkpoints
from tests.families import DECODERS, language_model

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3]]


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voice")
    return checkpoints.voice(checkpoints.adapter(checkpoints.base(folder), folder / "run"))


def drawn(seed=0, temperature=0.7, length=40):
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
    whole = generate_ids(model, PROMPTS, sampling, uniforms)
    streamed = [list(stream_tokens(model, p, sampling, row)) for p, row in zip(PROMPTS, uniforms, strict=True)]
    assert streamed == whole
    assert len(whole[0]) <= 7 < len(endless[0])


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
def test_many_turns_are_rendered_as_the_template_renders_the_whole(voice, system):
    session = conversation("Hello.", "What?", "What is a rose?", system=system)
    ids, left_out = prompt_ids(session, voice, 40)
    whole = voice.tokenizer.apply_chat_template(
        [{"role": "system", "content": system}] * bool(system)
        + [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "What?"},
            {"role": "user", "content": "What is a rose?"},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert voice.tokenizer.decode(ids) == whole
    assert left_out == 0


def test_as_the_user_it_opens_and_goes_on(voice):
    opening, _ = prompt_ids(Session(role="user"), voice, 40)
    assert voice.tokenizer.decode(opening) == "<|im_start|>user\n"
    later, _ = prompt_ids(conversation("Hi.", "Good day.", role="user"), voice, 40)
    told = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nGood day.<|im_end|>\n<|im_start|>user\n"
    assert voice.tokenizer.decode(later) == told


def test_a_long_conversation_loses_its_oldest_turns_and_leaves_room_for_the_reply(voice):
    """The model reads 256 tokens."""
    session = conversation(*(["The hare eats grass. " * 4] * 16), "What is a rose?")
    ids, left_out = prompt_ids(session, voice, 40)
    assert 100 < len(ids) <= 216
    assert left_out % 2 == 0 < left_out
    assert voice.tokenizer.decode(ids).startswith("<|im_start|>user\nThe hare")
    assert len(prompt_ids(session, voice, 1000)[0]) <= 128  # a reply gets no more than half
    with pytest.raises(MannersError, match="216 tokens: say it in fewer words"):
        prompt_ids(conversation("The hare eats grass. " * 100), voice, 40)


def test_a_template_that_refuses_the_conversation_is_answered_in_words(voice):
    own = voice.tokenizer.chat_template
    voice.tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    try:
        with pytest.raises(MannersError, match=r"no system here. /system alone"):
            prompt_ids(conversation("Hi.", system="S"), voice, 40)
    finally:
        voice.tokenizer.chat_template = own


@pytest.mark.parametrize("role", ["assistant", "user"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_was_streamed_is_what_evaluation_would_have_read(voice, role, temperature):
    """One reply by the same uniforms: ``generate`` of evaluate.py, whose uniforms are a batch's first row."""
    session = conversation("What would you feed to a hare?", *["Grass."] * (role == "user"), role=role)
    settings = {"max_new_tokens": 40, "do_sample": temperature > 0, "temperature": temperature, "role": role}
    for seed in range(3):
        (reply,) = answer(voice.model, voice.tokenizer, [session.messages], seed=seed, **settings)
        chance = drawn(seed, temperature)
        said_so = list(stream_reply(voice, prompt_ids(session, voice, 40)[0], role, chance, chance.draw()))
        assert "".join(said_so) == reply.text
        assert len(said_so) > 5


def one_by_one(tokenizer, text, end=""):
    return list(text_pieces(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer, end))


def test_no_half_of_a_character_is_ever_shown(tokenizer):
    """The tiny base has no tokens for these: they come byte by byte."""
    text = "naïve 日本語 🦔🦔 end"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    halves = [n for n in range(len(ids)) if "\ufffd" in tokenizer.decode(ids[:n])]
    assert len(halves) > 8
    shown = one_by_one(tokenizer, text)
    assert "".join(shown) == text
    assert "\ufffd" not in "".join(shown)
    assert len(shown) > 5
    broken = ids[: halves[-1]]  # a reply that the limit cut within a character says so at its end
    assert "".join(text_pieces(broken, tokenizer)) == tokenizer.decode(broken)


def test_space_around_a_reply_is_no_part_of_it_and_stop_tokens_are_not_shown(tokenizer):
    assert "".join(one_by_one(tokenizer, "\n  Yes.  No. \n<|im_end|>")) == "Yes.  No."
    assert one_by_one(tokenizer, "<|im_end|>") == []


def test_a_users_turn_ends_where_the_template_opens_the_reply(tokenizer):
    end = "\nAssistant:"
    said_so = one_by_one(tokenizer, "Hi.\nAssist me.\nAssistant: Yes.\nUser: No.", end)
    assert "".join(said_so) == "Hi.\nAssist me."
    assert not [p for p in said_so if p.endswith("\nAss")]
    assert "".join(one_by_one(tokenizer, "Hi.\nAss", end)) == "Hi.\nAss"  # what only looked like it is shown at the end


def test_a_plain_template_ends_the_users_turn_in_the_stream(tmp_path):
    folder = checkpoints.base(tmp_path)
    plain = load_tokenizer(str(folder), chat_template="plain")
    plain.save_pretrained(folder)
    voice = checkpoints.voice(folder)
    reply = voice.tokenizer("Hello there.\nAssistant: Hi.", add_special_tokens=False)["input_ids"]
    assert set(reply).isdisjoint(stop_token_ids(voice.model, voice.tokenizer))
    told = iter(reply)
    voice.model.forward = lambda **_: type("Out", (), {"logits": one_hot(next(told))})
    chance = drawn(temperature=0.0)
    ids, _ = prompt_ids(Session(role="user"), voice, 40)
    assert voice.tokenizer.decode(ids) == "User:"
    assert "".join(stream_reply(voice, ids, "user", chance, chance.draw())) == "Hello there."


def one_hot(token):
    logits = torch.zeros(1, 1, 3072)
    logits[0, 0, token] = 1.0
    return logits
