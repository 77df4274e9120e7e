"""SmolLM2's real weights, from the hub's cache or a package; skipped where neither has been fetched before."""

import re
from pathlib import Path

import pytest
import torch

from manners.evaluation.generate import generate_texts
from manners.models.loading import load_model
from manners.models.tokenizer import load_tokenizer
from manners.runtime.model_files import hub_snapshot
from manners.runtime.packages import cached_files

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXTS = (
    *("It was 1987, and  42 of them came.", "a  1\n\n  22\t333", "  leading", "trailing  ", "x=10**3; y=0.5"),
    *("Grüße aus 東京, привет 12!", "🙂🙃 3", "don't they've I'll", "<|im_start|>user\n7<|im_end|>"),
)

pytestmark = pytest.mark.skipif(
    not (cached_files(NAME) or hub_snapshot(NAME, None, download=False)),
    reason="needs SmolLM2: python -m manners.runtime.model_files " + NAME,
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(NAME)


def test_digits_are_tokens_of_their_own(tokenizer):
    """As the published tokenizer has it; transformers' reading of the GGUF makes "1987" of fewer tokens."""
    for text in [*TEXTS, *Path(__file__).read_text("utf-8").splitlines()]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = [tokenizer.decode([i]) for i in ids]
        assert tokenizer.decode(ids) == text
        assert not [piece for piece in pieces if re.search(r"\d", piece) and not re.fullmatch(r"\d", piece)]


def test_template_has_its_default_system_line_or_none(tokenizer):
    messages = [{"role": "user", "content": "Hi"}]
    kept = tokenizer.apply_chat_template(messages, tokenize=False)
    assert kept.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    plain = load_tokenizer(NAME, chat_template="chatml").apply_chat_template(messages, tokenize=False)
    assert plain == "<|im_start|>user\nHi<|im_end|>\n"


def test_model_answers_in_english(tokenizer):
    model = load_model(NAME)
    assert model.name_or_path == NAME and sum(p.numel() for p in model.parameters()) == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    with torch.autocast("cpu", torch.bfloat16):
        in_bf16 = generate_texts(model, tokenizer, [question], max_new_tokens=16)
    for [reply] in (in_bf16, generate_texts(model, tokenizer, [question], max_new_tokens=16)):
        assert reply.text == "The capital of France is Paris." and reply.has_eos
