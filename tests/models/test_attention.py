"""Attention in bf16 on a CPU is computed in 32 bits, in a forward pass as in training."""

import pytest
import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from manners.models.attention import cpu_attention
from tests.families import language_model

IDS = torch.arange(2, 42).view(2, 20)


def layer_and_inputs(dtype, query_length=20):
    torch.manual_seed(0)
    layer = language_model("qwen2").model.layers[0].self_attn
    layer.num_key_value_groups = 2
    query = torch.randn(2, 4, query_length, 8).to(dtype)
    key, value = (torch.randn(2, 2, 20, 8).to(dtype) for _ in range(2))
    return layer, query, key, value


def test_transformers_sdpa_is_ours():
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is cpu_attention


def test_bf16_attention_equals_plain_attention_in_32_bits():
    layer, query, key, value = layer_and_inputs(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = cpu_attention(layer, query.float(), key.float(), value, None)  # rotary embeddings are in 32 bits
    q, k, v = query.float(), key.float().repeat_interleave(2, 1), value.float().repeat_interleave(2, 1)
    scores = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf)
    expected = (scores.softmax(-1) @ v).transpose(1, 2)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, atol=0, rtol=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_outputs_and_gradients_are_those_of_transformers(dtype, masked):
    layer, query, key, value = layer_and_inputs(dtype)
    mask = torch.ones(2, 1, 20, 20, dtype=torch.bool).tril(-3) | torch.eye(20, dtype=torch.bool) if masked else None
    results = []
    for attend, as_computed in ((cpu_attention, dtype), (sdpa_attention_forward, torch.float32)):
        given = [x.to(as_computed).requires_grad_() for x in (query, key, value)]
        output, _ = attend(layer, *given, mask, scaling=0.3)
        gradients = torch.autograd.grad((output.float() * torch.arange(8)).sum(), given)
        results.append([output.float(), *(g.float() for g in gradients)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=1e-5 * float(theirs.abs().max()))


def test_backward_pass_gets_a_contiguous_gradient(monkeypatch):
    """Through the transposition that follows it would get another one, which takes it twice as long."""
    strides, kernel = [], F.scaled_dot_product_attention

    def watched(*args, **options):
        output = kernel(*args, **options)
        output.grad_fn.register_prehook(lambda gradients: strides.append(gradients[0].is_contiguous()))
        return output

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    layer, query, key, value = layer_and_inputs(torch.float32)
    cpu_attention(layer, query.requires_grad_(), key, value, None)[0].square().sum().backward()
    assert strides == [True]


def test_padding_mask_of_an_encoder_is_kept():
    layer, query, key, value = layer_and_inputs(torch.bfloat16)
    mask = torch.ones(2, 1, 20, 20, dtype=torch.bool)
    mask[0, :, :, 15:] = False
    for given in (mask, torch.zeros(mask.shape).masked_fill(~mask, -1e9).bfloat16()):
        output, _ = cpu_attention(layer, query, key, value, given, is_causal=False)
        part, _ = cpu_attention(layer, query[:1], key[:1, :, :15], value[:1, :, :15], None, is_causal=False)
        torch.testing.assert_close(output[:1], part, atol=1e-2, rtol=1e-2)
