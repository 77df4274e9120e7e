"""The policy's numbers against the plain model's, and that policy, critic and reference keep apart."""

import copy

import pytest
import torch
from torch.distributions import Categorical

from manners.errors import MannersError
from manners.models.lora import merged_for_generation, prepare_for_training, trainable_parameters
from manners.models.policy import CRITIC, Policy
from tests.families import DECODERS, language_model

ROWS = [[5, 9, 33, 2, 7], [8, 1, 90, 4, 61, 12, 13, 44, 6], [3, 77], [15, 16, 17, 18, 19, 20]]
STARTS = [2, 5, 1, 4]  # where each reply begins: the tokens before are the prompt
HEAT = 0.6


def batch(rows=ROWS, starts=STARTS, pad=0, beyond=0):
    """``ids`` right-padded, and which positions predict a token of the reply."""
    width = max(map(len, rows)) + beyond
    ids = torch.full((len(rows), width), pad)
    response_mask = torch.zeros((len(rows), width - 1), dtype=torch.bool)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        response_mask[i, start - 1 : len(row) - 1] = True
    return ids, response_mask


def plainly(model, temperature=HEAT):
    """Log-probabilities, entropies and last states of the replies' tokens: row by row, from all logits."""
    found = [], [], []
    for row, start in zip(ROWS, STARTS, strict=True):
        with torch.no_grad():
            out = model(torch.tensor([row]), use_cache=False, output_hidden_states=True)
        for at in range(start, len(row)):
            seen = Categorical(logits=out.logits[0, at - 1].double() / temperature)
            found[0].append(seen.log_prob(torch.tensor(row[at])))
            found[1].append(seen.entropy())
            found[2].append(out.hidden_states[-1][0, at - 1])
    return tuple(torch.stack(values) for values in found)


def lora(model, dropout=0.0):
    return prepare_for_training(model, "lora", 4, 8, dropout, "all-linear")


def disturb(module, part="", by=0.3, seed=1):
    """Change the trainable weights whose name holds ``part``."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in trainable_parameters(module).items():
            if part in name:
                p.add_(by * torch.randn_like(p))


def close(a, b, tolerance=1e-4):
    return torch.allclose(a.double(), b.double(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("family", DECODERS)
def test_numbers_are_those_of_the_plain_model(family, adapted):
    model = language_model(family)
    trained = Policy(lora(model) if adapted else model)
    disturb(trained.model, by=0.05)
    disturb(trained.value_head)
    logprobs, entropy, states = plainly(trained.model)
    with torch.no_grad():
        judged = trained.forward(*batch(), HEAT)
    assert close(judged.logprobs, logprobs)
    assert close(judged.entropy, entropy)
    assert close(judged.values, states @ trained.value_head.weight[0] + trained.value_head.bias)


@pytest.mark.parametrize("family", DECODERS)
def test_padding_changes_nothing(family):
    trained = Policy(language_model(family))
    disturb(trained.value_head)
    with torch.no_grad():
        plain, padded = trained.forward(*batch(), HEAT), trained.forward(*batch(pad=41, beyond=7), HEAT)
        reference = [trained.reference_logprobs(*b, HEAT) for b in (batch(), batch(pad=41, beyond=7))]
    assert all(close(a, b) for a, b in zip(vars(plain).values(), vars(padded).values(), strict=True))
    assert close(*reference)


def test_the_value_before_a_token_has_not_seen_it():
    trained = Policy(language_model("qwen2"))
    disturb(trained.value_head)
    row, other = list(ROWS[1]), list(ROWS[1])
    other[6] = 50  # the second token of the reply, which begins at 5
    with torch.no_grad():
        values, changed = (trained.forward(*batch([r], [5]), HEAT).values for r in (row, other))
    assert torch.equal(values[:2], changed[:2])  # those that predict tokens 5 and 6
    assert (values[2:] != changed[2:]).all()


def test_values_begin_at_zero_and_rloo_has_none():
    with torch.no_grad():
        assert not Policy(language_model("qwen2")).forward(*batch(), HEAT).values.any()
        trained = Policy(language_model("qwen2"), "none")
        disturb(trained.value_head)
        assert not trained.forward(*batch(), HEAT).values.any()


@pytest.mark.parametrize("critic", ["head", "adapter"])
@pytest.mark.parametrize("family", DECODERS)
def test_the_reference_is_the_model_as_it_was_before_training(family, critic):
    model = language_model(family)
    before = copy.deepcopy(model)
    trained = Policy(lora(model), critic)
    wanted = plainly(before)[0]
    assert close(trained.reference_logprobs(*batch(), HEAT), wanted)
    disturb(trained, "lora_")
    assert close(trained.reference_logprobs(*batch(), HEAT), wanted)
    with torch.no_grad():
        assert not close(trained.forward(*batch(), HEAT).logprobs, wanted, 0.1)
    assert all(p.requires_grad for n, p in trained.named_parameters() if "lora_" in n)


def test_full_fine_tuning_keeps_a_frozen_copy_of_the_actual_start():
    model = language_model("qwen2")
    disturb(model, by=0.1)  # as if SFT had been here
    wanted = plainly(model)[0]
    trained = Policy(model)
    held = {n for n, p in trained.named_parameters() if not p.requires_grad}
    assert held and all(n.startswith("reference.") for n in held)
    optimizer = torch.optim.SGD(trainable_parameters(trained).values(), lr=0.1)
    trained.forward(*batch(), HEAT).logprobs.sum().backward()
    optimizer.step()
    assert close(trained.reference_logprobs(*batch(), HEAT), wanted)
    with torch.no_grad():
        assert not close(trained.forward(*batch(), HEAT).logprobs, wanted, 0.1)


DROPOUTS = {
    "qwen2": {"attention_dropout": 0.5},
    "llama": {"attention_dropout": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "gpt_neox": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
}


@pytest.mark.parametrize("critic", ["head", "adapter"])
@pytest.mark.parametrize("family", DECODERS)
def test_dropout_is_off_even_while_the_model_trains(family, critic):
    trained = Policy(lora(language_model(family, **DROPOUTS[family]), dropout=0.5), critic).train()
    disturb(trained)
    with torch.no_grad():
        first, again = trained.forward(*batch(), HEAT), trained.forward(*batch(), HEAT)
    assert torch.equal(first.logprobs, again.logprobs)
    assert torch.equal(first.values, again.values)
    assert torch.equal(trained.reference_logprobs(*batch(), HEAT), trained.reference_logprobs(*batch(), HEAT))


# --- The critic's own adapter ---


def test_the_policy_does_not_depend_on_the_critics_adapter():
    trained = Policy(lora(language_model("qwen2")), "adapter")
    disturb(trained.value_head)
    with torch.no_grad():
        before = trained.forward(*batch(), HEAT)
        disturb(trained, f".{CRITIC}.")
        after = trained.forward(*batch(), HEAT)
    assert torch.equal(before.logprobs, after.logprobs)
    assert torch.equal(before.entropy, after.entropy)
    assert not close(before.values, after.values, 0.1)


def gradients(trained, of):
    trained.zero_grad()
    judged = trained.forward(*batch(), HEAT)
    of(judged).backward()
    return {n: p.grad.clone() for n, p in trainable_parameters(trained).items() if p.grad is not None and p.grad.any()}


def both(judged):
    return (judged.logprobs * torch.arange(len(judged.logprobs))).sum() + judged.values.square().sum()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_policy_and_critic_each_learn_from_their_own_loss(checkpointing):
    """Also after the reference was asked, and where activations are computed anew in the backward pass."""
    torch.manual_seed(0)
    model = prepare_for_training(
        language_model("qwen2"), "lora", 4, 8, 0.0, "all-linear", gradient_checkpointing=checkpointing
    )
    trained = Policy(model, "adapter").train()
    disturb(trained)
    trained.reference_logprobs(*batch(), HEAT)
    joint = gradients(trained, both)
    own = {n for n in joint if ".default." in n}, {n for n in joint if f".{CRITIC}." in n}
    assert own[0] and len(own[0]) == len(own[1]) == 2 * 7 * 2  # A and B of seven layers in two blocks
    assert set(joint) == own[0] | own[1] | {"value_head.weight", "value_head.bias"}

    # The same weights, each adapter alone on a model of its own.
    for adapter, loss in (("default", lambda j: (j.logprobs * torch.arange(len(j.logprobs))).sum()),
                          (CRITIC, lambda j: j.values.square().sum())):  # fmt: skip
        torch.manual_seed(0)
        alone = Policy(lora(language_model("qwen2")), "head")
        with torch.no_grad():
            for name, p in trainable_parameters(alone).items():
                p.copy_(trained.get_parameter(name.replace(".default.", f".{adapter}.")))
        wanted = gradients(alone, loss)
        found = {n: joint[n.replace(".default.", f".{adapter}.")] for n in wanted}
        assert all(torch.allclose(wanted[n], found[n], rtol=1e-4, atol=1e-4) for n in wanted)


def test_entropy_has_a_gradient_only_where_it_is_wanted():
    trained = Policy(language_model("qwen2"))
    assert not trained.forward(*batch(), HEAT).entropy.requires_grad
    assert trained.forward(*batch(), HEAT, entropy_grad=True).entropy.requires_grad
    with torch.no_grad():
        assert not trained.forward(*batch(), HEAT, entropy_grad=True).entropy.requires_grad


def test_merged_decodes_the_same_policy_and_leaves_every_bit_as_it_was():
    model = prepare_for_training(language_model("qwen2"), "lora", 4, 8, 0.0, "all-linear")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.5)
    Policy(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    logits = model(ids).logits.detach()
    with merged_for_generation(model):
        assert torch.allclose(model(ids).logits, logits, atol=1e-5)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.equal(model(ids).logits, logits)
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)


def test_in_bf16_the_ratio_stays_one_and_log_probabilities_are_close():
    model = prepare_for_training(language_model("qwen2"), "lora", 4, 8, 0.0, "all-linear")
    ids = torch.randint(5, 60, (4, 12), generator=torch.Generator().manual_seed(0))
    response_mask = torch.ones(4, 11, dtype=torch.bool)
    exact, rough = Policy(model), Policy(model, bf16=True)
    once, again = rough.forward(ids, response_mask, 0.7), rough.forward(ids, response_mask, 0.7)
    assert torch.equal(once.logprobs, again.logprobs) and once.logprobs.dtype == torch.float32
    difference = (once.logprobs - exact.forward(ids, response_mask, 0.7).logprobs).abs().max()
    assert 0 < difference < 0.2  # eight bits of mantissa
    (once.logprobs.sum() + once.values.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_model_that_bends_its_logits_is_refused():
    model = language_model("qwen2")
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(MannersError, match="final_logit_softcapping"):
        Policy(model)
