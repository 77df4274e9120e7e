"""A small policy that has preferences: at its initial scale every token would be as likely as any other."""

import pytest


@pytest.fixture
def small_qwen2(small_qwen2):
    small_qwen2.get_input_embeddings().weight.data.mul_(6)
    return small_qwen2
