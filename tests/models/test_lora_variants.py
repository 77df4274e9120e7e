"""rsLoRA, DoRA and PEFT's initializations against PEFT's own model, from the start of training to the saved adapter."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from manners.errors import MannersError
from manners.models import lora
from manners.models.adapter_config import check_plain_lora, read_adapter_config
from manners.models.loading import load_model
from manners.models.lora import frozen_weights_in_bf16, merged_for_generation, trainable_parameters
from manners.models.policy import Policy
from tests.families import VOCAB, classifier, language_model

IDS = torch.arange(2, 42)[None] % VOCAB
VARIANTS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora-rslora": {"use_dora": True, "use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter_4": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "pissa-rslora": {"init_lora_weights": "pissa", "use_rslora": True},
    "pissa-dora": {"init_lora_weights": "pissa", "use_dora": True},
}
DORA = [name for name in VARIANTS if "dora" in name]
variants = pytest.mark.parametrize("name", VARIANTS)


def fresh(model, name, targets="all-linear", **options):
    torch.manual_seed(1)
    return lora.prepare_for_training(model, "lora", 4, 6, 0.0, targets, **VARIANTS[name], **options).eval()


def pefts(model, name):
    """The same by peft alone."""
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules="all-linear", **VARIANTS[name])
    return get_peft_model(model, config).eval()


@torch.no_grad()
def train(model):
    """Stands for training: every trainable weight is changed, those of both models alike."""
    torch.manual_seed(2)
    for _, weight in sorted(trainable_parameters(model).items()):
        weight.add_(0.1 * torch.randn_like(weight))
    return model


@torch.no_grad()
def logits(model):
    return model(IDS).logits.float()


def equal(one, other):
    return torch.allclose(one, other, atol=2e-5 * other.abs().max())


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
@variants
def test_variant_starts_as_the_base_and_trains_as_pefts(tmp_path, family, name):
    if (family, name) == ("gpt2", "olora"):
        with pytest.raises(MannersError, match=r"olora: peft cannot decompose a Conv1D such as .*c_attn"):
            fresh(language_model(family), name)
        return
    language_model(family).save_pretrained(tmp_path / "base")
    base = logits(load_model(str(tmp_path / "base")))
    ours, theirs = (make(load_model(str(tmp_path / "base")), name) for make in (fresh, pefts))
    assert equal(logits(ours), base)
    expected = logits(train(theirs))
    assert equal(logits(train(ours)), expected) and not torch.allclose(expected, base, atol=0.1)
    lora.save_pretrained(ours, tmp_path / "out")
    assert equal(logits(ours), expected)  # saving changes nothing
    loaded = PeftModel.from_pretrained(load_model(str(tmp_path / "base")), str(tmp_path / "out"))
    assert equal(logits(loaded.eval()), expected)
    with loaded.disable_adapter():
        assert equal(logits(loaded), base)
    check_plain_lora(tmp_path / "out", "policy_from=X", allow_dora=name in DORA)


@variants
def test_variant_is_merged_for_generation_and_unmerged(name):
    model = train(fresh(language_model("qwen2"), name))
    expected, before = logits(model), {k: p.detach().clone() for k, p in model.named_parameters()}
    with merged_for_generation(model):
        assert equal(logits(model), expected)
        packed = any("forward" in vars(layer) for layer in model.modules())
        assert packed or any(not torch.equal(p, before[k]) for k, p in model.named_parameters() if k in before)
    assert all(torch.equal(p, before[k]) for k, p in model.named_parameters())
    assert all(p.requires_grad == ("lora_" in k) for k, p in model.named_parameters())


@variants
def test_variant_in_bf16_has_the_gradients_of_autocast(name):
    model = train(fresh(language_model("qwen2"), name)).train()

    def gradients(held):
        model.zero_grad()
        with frozen_weights_in_bf16(model, held), torch.autocast("cpu", torch.bfloat16):
            model(IDS).logits.float().logsumexp(-1).sum().backward()
        return torch.cat([p.grad.flatten() for p in trainable_parameters(model).values()])

    expected = gradients(False)
    assert expected.abs().max() > 0.1 and torch.equal(gradients(True), expected)


@pytest.mark.parametrize("name", ["rslora", "dora", "gaussian", "orthogonal"])
def test_reference_of_the_policy_is_the_base(name):
    base = language_model("qwen2")
    plain, policy = Policy(copy.deepcopy(base), "none"), Policy(train(fresh(base, name)), "adapter")
    mask = torch.ones(1, IDS.shape[1] - 1, dtype=torch.bool)
    trainable = trainable_parameters(policy).keys()
    reference = policy.reference_logprobs(IDS, mask, 1.0)
    assert torch.allclose(reference, plain.reference_logprobs(IDS, mask, 1.0), atol=1e-5)
    assert (policy(IDS, mask, 1.0).logprobs - reference).abs().max() > 0.1
    assert trainable_parameters(policy).keys() == trainable
    assert any("critic" in n and "magnitude" in n for n in trainable) == (name == "dora")


@pytest.mark.parametrize("name", ["dora", "pissa", "olora"])
def test_head_of_a_reward_model_is_saved_with_the_variant(tmp_path, name):
    """peft's own conversion of PiSSA and OLoRA would lose it."""
    classifier("qwen2", pad_token_id=0).save_pretrained(tmp_path / "base")

    def base():
        return type(classifier("qwen2")).from_pretrained(tmp_path / "base")

    model = train(fresh(base(), name, task_type="SEQ_CLS", modules_to_save=["score"]))
    lora.save_pretrained(model, tmp_path / "out")
    loaded = PeftModel.from_pretrained(base(), str(tmp_path / "out")).eval()
    assert equal(logits(loaded), logits(model)) and not torch.allclose(logits(model), logits(base().eval()), atol=0.1)


def test_saved_pissa_is_a_lora_of_twice_the_rank(tmp_path):
    for name, alpha in (("pissa", 12), ("pissa-rslora", 6 * 2**0.5)):
        lora.save_pretrained(fresh(language_model("qwen2"), name), tmp_path / name)
        config = read_adapter_config(tmp_path / name)
        assert (config["r"], config["init_lora_weights"]) == (8, True)
        assert config["lora_alpha"] == pytest.approx(alpha)


@pytest.mark.parametrize("name", ["pissa", "pissa_niter_4", "olora"])
def test_rank_above_that_of_a_layer_is_refused(name):
    with pytest.raises(MannersError, match=r"k_proj is of rank 16. Set adapter.r=16 or less"):
        lora.prepare_for_training(language_model("qwen2"), "lora", 17, 6, 0.0, ["k_proj"], **VARIANTS[name])
