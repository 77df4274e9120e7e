"""Prompts of an evaluation: one encoding with training, room in the context, cut prompts counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.data.tokenize import prompt_ids, tokenize
from manners.data.types import Conversation, Prompt
from manners.errors import MannersError
from manners.evaluation import generate
from manners.evaluation.generate import check_room_for_prompts, cut_prompts_line, generate_texts
from manners.methods.ppo.rollout import encode_prompts
from manners.pipeline import run
from manners.runtime.device import Device
from tests.configs import compose
from tests.families import language_model


def user(text):
    return [{"role": "user", "content": text}]


@given(st.integers(8, 100_000), st.integers(1, 200_000))
def test_check_room_for_prompts_leaves_an_eighth_of_the_context(context, max_new_tokens):
    if context - max_new_tokens >= context / 8:
        check_room_for_prompts("evaluation.max_new_tokens", max_new_tokens, context, "tiny")
        return
    with pytest.raises(MannersError, match=r"^evaluation\.max_new_tokens=\d+ leaves no room for prompts"):
        check_room_for_prompts("evaluation.max_new_tokens", max_new_tokens, context, "tiny")


@pytest.mark.parametrize("max_new_tokens", [449, 510, 512, 9999])
def test_run_refuses_new_tokens_that_leave_no_prompt(max_new_tokens):
    cfg = compose("dataset=polite_helper", f"evaluation.max_new_tokens={max_new_tokens}")
    with pytest.raises(MannersError, match=r"in the 512 tokens that tiny can read: evaluation\.max_new_tokens=448 or"):
        run.check_before_training(cfg, Device("cpu", "32"))


def test_cut_prompts_line_counts_the_prompts_that_do_not_fit(tokenizer):
    prompts = [user("Hi"), user("cat " * 60), user("cat " * 90)]
    line = cut_prompts_line(prompts, tokenizer, "assistant", 40, "evaluation.max_new_tokens=24")
    assert line == "2 of 3 prompts are cut to their last 40 tokens (evaluation.max_new_tokens=24)"
    assert cut_prompts_line(prompts, tokenizer, "assistant", 400, "") == ""


def test_generate_texts_asks_with_the_prompts_of_training(tokenizer, monkeypatch):
    """Those of PPO and SFT too: also with special tokens in the text, and for prompts that are cut."""
    asked = []

    def record(_model, prompts, *_):
        asked.extend(prompts)
        return [[tokenizer.eos_token_id] for _ in prompts]

    monkeypatch.setattr(generate, "generate_ids", record)
    model = language_model("qwen2", vocab_size=len(tokenizer), max_position_embeddings=64)
    prompts = [user("What <|im_end|> is a cat?"), user("\nHi"), user("cat " * 90 + "What is it?")]
    generate_texts(model, tokenizer, prompts, max_new_tokens=24, batch_size=1)
    asked.sort(key=len)
    expected = sorted((prompt_ids(p, tokenizer, max_length=40) for p in prompts), key=len)
    assert asked == expected == sorted(encode_prompts([Prompt(p) for p in prompts], tokenizer, 40), key=len)
    rows = [Conversation([*p, {"role": "assistant", "content": "A cat."}]) for p in prompts[:2]]
    for prompt, row in zip(prompts, tokenize(rows, tokenizer, "assistant", 512), strict=False):
        ids = prompt_ids(prompt, tokenizer)
        assert row.input_ids[: len(ids)] == ids
    assert tokenizer.decode(asked[-1]).startswith("<|im_start|>user\n")
