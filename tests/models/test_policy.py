"""Policy, critic and reference: their numbers against the plain model's, and that they stay independent."""

import copy

import pytest
import torch
from torch.distributions import Categorical

from manners.models.lora import merged_for_generation, prepare_for_training, trainable_parameters
from manners.models.policy import CRITIC, Policy
from tests.families import DECODERS, language_model

ROWS = [[5, 9, 33, 2, 7], [8, 1, 90, 4, 61, 12, 13, 44, 6], [3, 77], [15, 16, 17, 18, 19, 20]]
REPLY_STARTS = [2, 5, 1, 4]  # the tokens before are the prompt
TEMPERATURE = 0.6


def make_batch(rows=ROWS, reply_starts=REPLY_STARTS, pad=0, padding=0):
    """Right-padded ids (B, T), and the response mask (B, T-1)."""
    width = max(map(len, rows)) + padding
    ids = torch.full((len(rows), width), pad)
    response_mask = torch.zeros((len(rows), width - 1), dtype=torch.bool)
    for i, (row, start) in enumerate(zip(rows, reply_starts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        response_mask[i, start - 1 : len(row) - 1] = True
    return ids, response_mask


def forward_plain(model):
    """Log-probabilities (N,), entropies (N,) and last hidden states (N, H) of the response tokens, row by row."""
    logprobs, entropies, hidden = [], [], []
    for row, start in zip(ROWS, REPLY_STARTS, strict=True):
        with torch.no_grad():
            output = model(torch.tensor([row]), use_cache=False, output_hidden_states=True)
        for t in range(start, len(row)):
            distribution = Categorical(logits=output.logits[0, t - 1].double() / TEMPERATURE)
            logprobs.append(distribution.log_prob(torch.tensor(row[t])))
            entropies.append(distribution.entropy())
            hidden.append(output.hidden_states[-1][0, t - 1])
    return torch.stack(logprobs), torch.stack(entropies), torch.stack(hidden)


def forward(policy, *batch, **kwargs):
    return policy(*(batch or make_batch()), TEMPERATURE, **kwargs)


@torch.no_grad()
def forward_no_grad(policy, *batch):
    return forward(policy, *batch)


def reference_logprobs(policy, *batch):
    return policy.reference_logprobs(*(batch or make_batch()), TEMPERATURE)


def lora(model, dropout=0.0, **kwargs):
    return prepare_for_training(model, "lora", 4, 8, dropout, "all-linear", **kwargs)


def perturb(module, part="", std=0.3):
    """Add noise to the trainable weights whose name contains ``part``."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in trainable_parameters(module).items():
            if part in name:
                p.add_(std * torch.randn_like(p))


def close(a, b, tolerance=1e-4):
    return torch.allclose(a.double(), b.double(), atol=tolerance, rtol=0)


# --- Forward pass ---


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("family", DECODERS)
def test_forward_equals_the_plain_model(family, adapted):
    model = language_model(family)
    policy = Policy(lora(model) if adapted else model)
    perturb(policy.model, std=0.05)
    perturb(policy.value_head)
    logprobs, entropies, hidden = forward_plain(policy.model)
    output = forward_no_grad(policy)
    assert close(output.logprobs, logprobs)
    assert close(output.entropy, entropies)
    assert close(output.values, hidden @ policy.value_head.weight[0] + policy.value_head.bias)


@pytest.mark.parametrize("family", DECODERS)
def test_forward_does_not_depend_on_padding(family):
    policy, padded_batch = Policy(language_model(family)), make_batch(pad=41, padding=7)
    perturb(policy.value_head)
    output, padded = forward_no_grad(policy), forward_no_grad(policy, *padded_batch)
    assert all(close(a, b) for a, b in zip(vars(output).values(), vars(padded).values(), strict=True))
    assert close(reference_logprobs(policy), reference_logprobs(policy, *padded_batch))


def test_value_does_not_see_the_token_that_it_precedes():
    policy = Policy(language_model("qwen2"))
    perturb(policy.value_head)
    row, other = list(ROWS[1]), list(ROWS[1])
    other[6] = 50  # the second token of the reply, which begins at 5
    values, other_values = (forward_no_grad(policy, *make_batch([r], [5])).values for r in (row, other))
    assert torch.equal(values[:2], other_values[:2])  # at the positions that predict tokens 5 and 6
    assert (values[2:] != other_values[2:]).all()


def test_values_start_at_zero():
    assert not forward_no_grad(Policy(language_model("qwen2"))).values.any()


def test_values_are_zero_without_a_critic():
    policy = Policy(language_model("qwen2"), "none")
    perturb(policy.value_head)
    assert not forward_no_grad(policy).values.any()


DROPOUTS = {
    "qwen2": {"attention_dropout": 0.5},
    "llama": {"attention_dropout": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "gpt_neox": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
}


@pytest.mark.parametrize("critic", ["head", "adapter"])
@pytest.mark.parametrize("family", DECODERS)
def test_dropout_is_disabled_in_train_mode_too(family, critic):
    policy = Policy(lora(language_model(family, **DROPOUTS[family]), dropout=0.5), critic).train()
    perturb(policy)
    first, second = forward_no_grad(policy), forward_no_grad(policy)
    assert torch.equal(first.logprobs, second.logprobs)
    assert torch.equal(first.values, second.values)
    assert torch.equal(reference_logprobs(policy), reference_logprobs(policy))


def test_bf16_keeps_the_ratio_at_one_and_logprobs_close():
    model = lora(language_model("qwen2"))
    ids = torch.randint(5, 60, (4, 12), generator=torch.Generator().manual_seed(0))
    batch = ids, torch.ones(4, 11, dtype=torch.bool)
    exact, bf16 = Policy(model), Policy(model, bf16=True)
    first, second = forward(bf16, *batch), forward(bf16, *batch)
    assert torch.equal(first.logprobs, second.logprobs) and first.logprobs.dtype == torch.float32
    error = (first.logprobs - forward(exact, *batch).logprobs).abs().max()
    assert 0 < error < 0.2  # eight bits of mantissa
    (first.logprobs.sum() + first.values.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# --- The reference ---


@pytest.mark.parametrize("critic", ["head", "adapter"])
@pytest.mark.parametrize("family", DECODERS)
def test_reference_is_the_model_before_training(family, critic):
    model = language_model(family)
    expected = forward_plain(copy.deepcopy(model))[0]
    policy = Policy(lora(model), critic)
    assert close(reference_logprobs(policy), expected)
    perturb(policy, "lora_")
    assert close(reference_logprobs(policy), expected)
    assert not close(forward_no_grad(policy).logprobs, expected, 0.1)
    assert all(p.requires_grad for n, p in policy.named_parameters() if "lora_" in n)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_policy_is_its_reference_until_its_adapter_changes(critic, bf16):
    policy = Policy(lora(language_model("qwen2")), critic, bf16)
    perturb(policy, "lora_A")
    perturb(policy, CRITIC)
    assert policy.is_reference
    assert torch.equal(forward_no_grad(policy).logprobs, reference_logprobs(policy))
    last = [p for n, p in policy.named_parameters() if "lora_B.default" in n][-1]
    with torch.no_grad():
        last[-1, -1] = 1e-3
    assert not policy.is_reference


def test_policies_that_may_differ_from_the_reference_at_once():
    """All weights train, an adapter begins elsewhere, or more than an adapter trains."""
    model = language_model("qwen2")
    started = lora(copy.deepcopy(model), init_lora_weights=False)
    dora = lora(copy.deepcopy(model), use_dora=True)
    assert not any(Policy(m).is_reference for m in (copy.deepcopy(model), started, dora))


def test_reference_of_full_fine_tuning_is_a_frozen_copy():
    model = language_model("qwen2")
    perturb(model, std=0.1)  # as after SFT
    expected = forward_plain(model)[0]
    policy = Policy(model)
    frozen = {n for n, p in policy.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith("reference.") for n in frozen)
    optimizer = torch.optim.SGD(trainable_parameters(policy).values(), lr=0.1)
    forward(policy).logprobs.sum().backward()
    optimizer.step()
    assert close(reference_logprobs(policy), expected)
    assert not close(forward_no_grad(policy).logprobs, expected, 0.1)


def test_merged_adapter_generates_alike_and_is_restored_exactly():
    model = lora(language_model("qwen2"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.5)
    Policy(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    logits = model(ids).logits.detach()
    with torch.no_grad(), merged_for_generation(model):
        assert torch.allclose(model(ids).logits, logits, atol=1e-5)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.equal(model(ids).logits, logits)
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)


# --- The critic's own adapter ---


def test_policy_does_not_depend_on_the_critics_adapter():
    policy = Policy(lora(language_model("qwen2")), "adapter")
    perturb(policy.value_head)
    before = forward_no_grad(policy)
    perturb(policy, f".{CRITIC}.")
    after = forward_no_grad(policy)
    assert torch.equal(before.logprobs, after.logprobs)
    assert torch.equal(before.entropy, after.entropy)
    assert not close(before.values, after.values, 0.1)


def gradients(policy, loss):
    """The gradients of ``loss(output)`` that are not zero, by parameter."""
    policy.zero_grad()
    loss(forward(policy)).backward()
    return {n: p.grad.clone() for n, p in trainable_parameters(policy).items() if p.grad is not None and p.grad.any()}


def weighted_logprobs(output):
    return (output.logprobs * torch.arange(len(output.logprobs))).sum()


def squared_values(output):
    return output.values.square().sum()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_policy_and_critic_adapters_get_their_own_gradients(checkpointing):
    """Also after a call for the reference, and with gradient checkpointing."""
    torch.manual_seed(0)
    policy = Policy(lora(language_model("qwen2"), gradient_checkpointing=checkpointing), "adapter").train()
    perturb(policy)
    reference_logprobs(policy)
    joint = gradients(policy, lambda output: weighted_logprobs(output) + squared_values(output))
    of_policy, of_critic = ({n for n in joint if f".{adapter}." in n} for adapter in ("default", CRITIC))
    assert len(of_policy) == len(of_critic) == 2 * 7 * 2  # A and B of seven modules in two layers
    assert set(joint) == of_policy | of_critic | {"value_head.weight", "value_head.bias"}

    # The same weights, with each adapter as the only one of a model.
    for adapter, loss in (("default", weighted_logprobs), (CRITIC, squared_values)):
        torch.manual_seed(0)
        single = Policy(lora(language_model("qwen2")), "head")
        with torch.no_grad():
            for name, p in trainable_parameters(single).items():
                p.copy_(policy.get_parameter(name.replace(".default.", f".{adapter}.")))
        expected = gradients(single, loss)
        found = {n: joint[n.replace(".default.", f".{adapter}.")] for n in expected}
        assert all(torch.allclose(expected[n], found[n], rtol=1e-4, atol=1e-4) for n in expected)
