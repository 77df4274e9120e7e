"""One combined adapter on the base says what the merged first adapter and the second on top of it say together."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel

from manners.models.loading import load_model
from manners.models.lora import prepare_for_training, save_combined_adapter, trainable_parameters
from tests.families import VOCAB, language_model

IDS = torch.arange(2, 42)[None] % VOCAB


def trained(model, r, alpha, targets, seed):
    """An adapter that does something: fresh ones have a B of zeros."""
    model = prepare_for_training(model, "lora", r, alpha, 0.0, targets)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in trainable_parameters(model).items():
            weight.normal_(std=0.2) if "lora_" in name else None
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


FUSED = {"gpt2": ("c_attn", "c_fc"), "gpt_neox": ("query_key_value", "dense_h_to_4h")}
TARGETS = [
    ("all-linear", "all-linear"),
    ("all-linear", ["{0}"]),
    (["{0}"], ["{0}", "{1}"]),
    (["{0}"], ["{1}"]),
    (r".*\.{0}", r".*\.{1}"),  # peft takes text for a pattern that fits the whole name
]


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("first, second", TARGETS)
def test_a_combined_adapter_is_the_merged_one_and_the_one_on_top(tmp_path, family, first, second):
    named = FUSED.get(family, ("q_proj", "down_proj"))
    first, second = (t.format(*named) if isinstance(t, str) else [m.format(*named) for m in t]
                     for t in (first, second))  # fmt: skip
    base = language_model(family)
    base.save_pretrained(tmp_path / "base")
    earlier = trained(load_model(str(tmp_path / "base")), 3, 5, first, seed=1)
    earlier.save_pretrained(tmp_path / "earlier")
    merged = PeftModel.from_pretrained(load_model(str(tmp_path / "base")), str(tmp_path / "earlier")).merge_and_unload()
    between = logits(merged)
    policy = trained(merged, 4, 16, second, seed=2)
    wanted = logits(policy)
    save_combined_adapter(policy, tmp_path / "earlier", tmp_path / "out")
    found = PeftModel.from_pretrained(load_model(str(tmp_path / "base")), str(tmp_path / "out")).eval()
    assert (logits(base) - between).abs().max() > 0.1 and (between - wanted).abs().max() > 0.1
    assert torch.allclose(logits(found), wanted, atol=1e-3)
    config = LoraConfig.from_pretrained(str(tmp_path / "out"))
    assert (config.r, config.lora_alpha) == (7, 7)
    assert config.base_model_name_or_path == str(tmp_path / "base")


def test_the_critic_is_not_saved_with_the_policy(tmp_path):
    from manners.models.policy import Policy

    base = language_model("qwen2")
    base.save_pretrained(tmp_path / "base")
    trained(load_model(str(tmp_path / "base")), 3, 5, "all-linear", seed=1).save_pretrained(tmp_path / "earlier")
    merged = PeftModel.from_pretrained(load_model(str(tmp_path / "base")), str(tmp_path / "earlier")).merge_and_unload()
    policy = trained(merged, 4, 16, "all-linear", seed=2)
    wanted = logits(policy)
    actor = Policy(policy, "adapter")
    save_combined_adapter(actor.model, tmp_path / "earlier", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir() if p.is_dir()] == []
    found = PeftModel.from_pretrained(load_model(str(tmp_path / "base")), str(tmp_path / "out")).eval()
    assert torch.allclose(logits(found), wanted, atol=1e-3)


def test_the_policy_in_memory_is_left_as_it_is(tmp_path):
    base = language_model("qwen2")
    base.save_pretrained(tmp_path / "base")
    trained(load_model(str(tmp_path / "base")), 3, 5, "all-linear", seed=1).save_pretrained(tmp_path / "earlier")
    policy = trained(copy.deepcopy(base), 4, 16, "all-linear", seed=2)
    before = logits(policy)
    save_combined_adapter(policy, tmp_path / "earlier", tmp_path / "out")
    assert torch.equal(logits(policy), before)
    assert policy.peft_config["default"].r == 4


@pytest.mark.parametrize("kind", ["none", "lora"])
def test_after_a_merge_all_weights_train_or_the_new_adapter_alone(kind):
    """A merged adapter leaves its base frozen: full fine-tuning on top of it would train nothing."""
    merged = trained(language_model("qwen2"), 3, 5, "all-linear", seed=1).merge_and_unload()
    names = trainable_parameters(prepare_for_training(merged, kind, 4, 16, 0.0, "all-linear"))
    assert names and all(("lora_" in name) == (kind == "lora") for name in names)
    assert kind == "lora" or names.keys() == dict(merged.named_parameters()).keys()
