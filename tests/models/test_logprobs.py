"""Logits of selected positions are the model's own, also where it caps or scales them after the head."""

import threading

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from manners.models import logprobs
from manners.models.logprobs import TokenLogprobs, logits_at, token_nll
from manners.models.lora import prepare_for_training
from manners.models.policy import Policy
from manners.models.shared_prefixes import Reading, plain_reading
from tests.families import VOCAB

SIZE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "attn_implementation": "eager",
}  # fmt: skip
MODELS = {
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": 3.0}),
    "granite": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 0.25}),
    "cohere": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.0625}),
    "cohere2": (Cohere2ForCausalLM, Cohere2Config, {"logit_scale": 4.0}),
}


def scaled_model(family):
    """A random model that transforms its logits after the head by much."""
    model_class, config_class, scaling = MODELS[family]
    torch.manual_seed(0)
    return model_class(config_class(**SIZE, **scaling)).eval()


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("family", MODELS)
def test_sft_measurement_and_ppo_use_the_models_own_logits(family, adapted):
    model = scaled_model(family)
    model = prepare_for_training(model, "lora", 4, 8, 0.0, "all-linear") if adapted else model
    ids = torch.randint(5, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.rand(3, 8, generator=torch.Generator().manual_seed(2)) < 0.5
    with torch.no_grad():
        expected = model(ids).logits[:, :-1][mask]
        logits, hidden = logits_at(model, plain_reading(ids, F.pad(mask, (0, 1))))
        nll, correct = token_nll(model, ids, mask)
        policy = Policy(model)
        logprobs = policy(ids, mask, temperature=0.7).logprobs
        reference = policy.reference_logprobs(ids, mask, temperature=0.7)
        head = model.get_output_embeddings()(hidden)
    assert (head - expected).abs().max() > 0.5  # the head alone would be wrong
    targets = ids[:, 1:][mask][:, None]
    assert torch.allclose(logits, expected, atol=1e-4)
    assert torch.allclose(nll, -torch.log_softmax(expected, -1).gather(1, targets)[:, 0], atol=1e-4)
    assert torch.equal(correct, expected.argmax(-1) == targets[:, 0])
    tempered = torch.log_softmax(expected / 0.7, -1).gather(1, targets)[:, 0]
    assert torch.allclose(logprobs, tempered, atol=1e-4)
    assert torch.allclose(reference, tempered, atol=1e-4)


def test_logits_at_leaves_other_threads_alone():
    """The web page answers several requests by one model: another thread's pass runs in the middle of ours."""
    model = scaled_model("gemma2")
    ids, others = torch.randint(5, VOCAB, (2, 6)), []

    def meanwhile(*_):
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: others.append(model(ids[:1, :3]).logits))
            thread.start()
            thread.join()

    with torch.no_grad():
        wanted, alone = model(ids).logits, model(ids[:1, :3]).logits
        hook = model.get_decoder().register_forward_pre_hook(meanwhile)
        logits, _ = logits_at(model, Reading(ids, torch.tensor([5, 11])))
        hook.remove()
    assert torch.allclose(logits, wanted[:, 5], atol=1e-5)
    assert len(others) == 1 and torch.allclose(others[0], alone, atol=1e-5)


def test_logits_at_leaves_the_model_as_it_was():
    model = scaled_model("gemma2")
    ids = torch.randint(5, VOCAB, (2, 6))
    before = model(ids).logits
    with pytest.raises(IndexError):
        logits_at(model, Reading(ids, torch.tensor([12])))
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("chunk", [1, 2 * VOCAB, 2**20])
@pytest.mark.parametrize("of_entropy", [0.0, 0.3])
def test_token_logprobs_and_gradients_equal_autograds(monkeypatch, chunk, of_entropy):
    """By one row, by two with a shorter last part, and all at once; against log_softmax in double precision."""
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, VOCAB, generator=generator)
    targets, weights = torch.randint(VOCAB, (5,), generator=generator), torch.randn(5, generator=generator)
    found, expected = logits.clone().requires_grad_(), logits.double().requires_grad_()
    log_p, entropy = TokenLogprobs.apply(found, targets, 0.7, True)
    all_log_p = torch.log_softmax(expected / 0.7, -1)
    right = all_log_p.gather(1, targets[:, None])[:, 0], -(all_log_p.exp() * all_log_p).sum(-1)
    for one, other in zip((log_p, entropy), right, strict=True):
        assert torch.allclose(one.double(), other, atol=1e-5)
    for values, of_values in ((log_p, entropy), right):
        ((weights * values).sum() + of_entropy * (weights.flip(0) * of_values).sum()).backward()
    assert torch.allclose(found.grad.double(), expected.grad, atol=1e-6)


def test_token_logprobs_of_bf16_logits_have_a_bf16_gradient():
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0)).bfloat16()
    found, expected, targets = logits.clone().requires_grad_(), logits.float().requires_grad_(), torch.arange(4)
    log_p, entropy = TokenLogprobs.apply(found, targets, 1.0, False)
    assert log_p.dtype == torch.float32 and not entropy.any() and not entropy.requires_grad
    log_p.sum().backward()
    torch.log_softmax(expected, -1).gather(1, targets[:, None]).sum().backward()
    assert found.grad.dtype == torch.bfloat16
    assert torch.allclose(found.grad.float(), expected.grad, atol=1e-2)
