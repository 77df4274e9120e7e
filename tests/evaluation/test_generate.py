"""Prompts of an evaluation: one encoding with training, room in the context, cut prompts counted."""

from manners.data.tokenize import prompt_ids, tokenize
from manners.data.types import Conversation, Prompt
from manners.evaluation import generate
from manners.evaluation.generate import cut_prompts_line, generate_texts
from manners.methods.ppo.rollout import encode_prompts
from tests.families import language_model


def user(text):
    return [{"role": "user", "content": text}]


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
