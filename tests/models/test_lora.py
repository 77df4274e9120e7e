"""A combined adapter on the base gives the logits of the merged first adapter with the second on top."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel

from manners.errors import MannersError
from manners.models.loading import load_model
from manners.models.lora import prepare_for_training, save_combined_adapter, trainable_parameters
from manners.models.policy import Policy
from tests.families import VOCAB, language_model

IDS = torch.arange(2, 42)[None] % VOCAB


def with_random_lora(model, r, alpha, targets, seed):
    """Add an adapter with random weights: a new one's B is zero."""
    model = prepare_for_training(model, "lora", r, alpha, 0.0, targets)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in trainable_parameters(model).items():
            weight.normal_(std=0.2) if "lora_" in name else None
    return model.eval()


def save_base_and_first_adapter(folder, family="qwen2", targets="all-linear"):
    """Save a base and an adapter on it; return the base, and the base with the adapter merged."""
    base = language_model(family)
    base.save_pretrained(folder / "base")
    with_random_lora(load_model(str(folder / "base")), 3, 5, targets, seed=1).save_pretrained(folder / "first")
    merged = PeftModel.from_pretrained(load_model(str(folder / "base")), str(folder / "first")).merge_and_unload()
    return base, merged


def load_combined(folder):
    return PeftModel.from_pretrained(load_model(str(folder / "base")), str(folder / "out")).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


MODULES = {"gpt2": ("c_attn", "c_fc"), "gpt_neox": ("query_key_value", "dense_h_to_4h")}
TARGETS = [
    ("all-linear", "all-linear"),
    ("all-linear", ["{0}"]),
    (["{0}"], ["{0}", "{1}"]),
    (["{0}"], ["{1}"]),
    (r".*\.{0}", r".*\.{1}"),  # peft matches a string as a pattern against the full module name
]


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("first, second", TARGETS)
def test_combined_adapter_equals_merged_plus_second(tmp_path, family, first, second):
    modules = MODULES.get(family, ("q_proj", "down_proj"))
    first, second = (t.format(*modules) if isinstance(t, str) else [m.format(*modules) for m in t]
                     for t in (first, second))  # fmt: skip
    base, merged = save_base_and_first_adapter(tmp_path, family, first)
    merged_logits = logits(merged)
    policy = with_random_lora(merged, 4, 16, second, seed=2)
    expected = logits(policy)
    save_combined_adapter(policy, tmp_path / "first", tmp_path / "out")
    assert (logits(base) - merged_logits).abs().max() > 0.1 and (merged_logits - expected).abs().max() > 0.1
    assert torch.allclose(logits(load_combined(tmp_path)), expected, atol=1e-3)
    config = LoraConfig.from_pretrained(str(tmp_path / "out"))
    assert (config.r, config.lora_alpha) == (7, 7)
    assert config.base_model_name_or_path == str(tmp_path / "base")


def test_save_combined_adapter_leaves_the_critic_out(tmp_path):
    _, merged = save_base_and_first_adapter(tmp_path)
    model = with_random_lora(merged, 4, 16, "all-linear", seed=2)
    expected = logits(model)
    policy = Policy(model, "adapter")
    save_combined_adapter(policy.model, tmp_path / "first", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir() if p.is_dir()] == []
    assert torch.allclose(logits(load_combined(tmp_path)), expected, atol=1e-3)


def test_save_combined_adapter_leaves_the_policy_unchanged(tmp_path):
    base, _ = save_base_and_first_adapter(tmp_path)
    policy = with_random_lora(copy.deepcopy(base), 4, 16, ["q_proj"], seed=2)
    before, modules = logits(policy), [name for name, _ in policy.named_modules()]
    save_combined_adapter(policy, tmp_path / "first", tmp_path / "out")
    assert torch.equal(logits(policy), before)
    assert policy.peft_config["default"].r == 4
    assert [name for name, _ in policy.named_modules()] == modules


# --- Names of modules ---


@pytest.mark.parametrize(
    "family, targets, message",
    [
        (
            "qwen2",
            ["q_proj", "v_porj"],
            "[q_proj,v_porj]: this model has no linear layer 'v_porj'. Did you mean 'v_proj'?",
        ),
        ("qwen2", ["q_proj", "layers.7.mlp.up_proj"], "no linear layer 'layers.7.mlp.up_proj'"),
        ("gpt2", ["q_proj"], "no linear layer 'q_proj'. Did you mean 'c_proj'?"),
        ("qwen2", ["embed_tokens"], "no linear layer 'embed_tokens'"),
        ("qwen2", ["roj"], "no linear layer 'roj'"),
        ("qwen2", "all_linear", "matches the full name of no linear layer. Did you mean 'all-linear'?"),
        ("qwen2", "q_proj", "matches the full name of no linear layer. Did you mean [q_proj]?"),
        ("qwen2", r".*\.layers\.[01]\.(q_proj|v_proj)", "matches the full name of no linear layer"),
        ("qwen2", "(", "is no pattern"),
        ("qwen2", r".*(q_proj|norm)", "is not supported"),
        ("tied", ["lm_head"], "adapts the output layer, whose weight is also that of the input embeddings"),
        ("gpt2", ["c_attn", "lm_head"], "adapts the output layer, whose weight is also that of the input embeddings"),
    ],
)
def test_target_modules_that_match_nothing_are_refused(family, targets, message):
    model = language_model("qwen2", tie_word_embeddings=True) if family == "tied" else language_model(family)
    with pytest.raises(MannersError) as error:
        prepare_for_training(model, "lora", 4, 16, 0.0, targets)
    assert "adapter.target_modules=" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize("targets, count", [("all-linear", 14), (["q_proj"], 2), (["layers.1.mlp.up_proj"], 1),
    (["mlp.up_proj", "lm_head"], 3), (r".*\.(q|v)_proj", 4), ("model.layers.0.mlp.up_proj", 1)])  # fmt: skip
def test_target_modules_as_peft_matches_them_are_adapted(targets, count):
    model = prepare_for_training(language_model("qwen2"), "lora", 4, 16, 0.0, targets)
    assert len([name for name in trainable_parameters(model) if ".lora_A." in name]) == count


@pytest.mark.parametrize("kind", ["none", "lora"])
def test_prepare_for_training_unfreezes_a_merged_base(kind):
    """``merge_and_unload`` leaves the base frozen: full fine-tuning on top of it would train nothing."""
    merged = with_random_lora(language_model("qwen2"), 3, 5, "all-linear", seed=1).merge_and_unload()
    names = trainable_parameters(prepare_for_training(merged, kind, 4, 16, 0.0, "all-linear"))
    assert names and all(("lora_" in name) == (kind == "lora") for name in names)
    assert kind == "lora" or names.keys() == dict(merged.named_parameters()).keys()
