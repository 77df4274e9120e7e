"""Every setting of peft's LoraConfig: an adapter with it can be built upon exactly, or is refused by name."""

import json
import shutil
from dataclasses import fields

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from manners.errors import MannersError
from manners.models.adapter_config import CONFIG, WEIGHTS, check_plain_lora, check_target_modules, read_adapter_config
from manners.models.loading import load_model
from manners.models.lora import load_adapter, save_combined_adapter
from manners.runtime.model_files import model_folder
from tests.families import VOCAB, language_model
from tests.models.test_lora import with_random_lora

IDS = torch.arange(2, 42)[None] % VOCAB
PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
KEPT = {  # settings of a plain LoRA, each with a value other than its default
    **{"r": 3, "lora_alpha": 11, "lora_dropout": 0.1, "use_rslora": True, "fan_in_fan_out": False},
    **{"target_modules": r".*\.(k_proj|up_proj)", "exclude_modules": ["v_proj"], "layers_to_transform": [1]},
    **{
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
        "alpha_pattern": {"^model.layers.0.*v_proj": 40},
    },
    **{"init_lora_weights": "gaussian", "layers_pattern": "layers", "task_type": None, "inference_mode": True},
    **{"auto_mapping": None, "peft_version": "0.1", "revision": "main", "base_model_name_or_path": "org/base"},
    **{"runtime_config": {"ephemeral_gpu_offload": True}, "megatron_core": "core", "qalora_group_size": 8},
    **{"eva_config": {"rho": 2.0}, "corda_config": {}, "loftq_config": {"loftq_bits": 4}, "lora_ga_config": {}},
}
REFUSED = {
    **{"peft_type": "LOHA", "bias": "lora_only", "modules_to_save": ["lm_head"], "trainable_token_indices": [3]},
    **{"use_dora": True, "use_qalora": True, "lora_bias": True, "target_parameters": ["mlp.experts"]},
    **{"layer_replication": [[0, 1]], "alora_invocation_tokens": [5], "megatron_config": {"a": 1}},
    **{"arrow_config": {"top_k": 2}, "use_bdlora": {"nblocks": 2}, "velora_config": {"rank": 2}},
    **{"monteclora_config": {"n": 2}, "kasa_config": {"beta": 1}, "ensure_weight_tying": True},
}
SET_BY_PEFT = {"auto_mapping", "peft_version", "base_model_name_or_path", "inference_mode", "runtime_config"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a random base model."""
    folder = tmp_path_factory.mktemp("base")
    language_model("qwen2").save_pretrained(folder)
    return folder


def save_adapter(base, folder, **options):
    """Save a random adapter on the base."""
    shutil.rmtree(folder, ignore_errors=True)
    model = get_peft_model(load_model(str(base)), LoraConfig(**PLAIN | options))
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight)) if weight.requires_grad else None
    model.save_pretrained(folder)


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def assert_built_upon(base, folder):
    """A second adapter on the first: what is saved and loaded again gives the same logits."""
    check_plain_lora(folder / "first", "policy_from=X")
    first = load_adapter(load_model(str(base)), folder / "first")
    adapted = logits(first)
    policy = with_random_lora(first.merge_and_unload(), 4, 16, ["v_proj", "k_proj"], seed=2)
    with policy.disable_adapter():
        assert torch.allclose(logits(policy), adapted, atol=1e-3)
    save_combined_adapter(policy, folder / "first", folder / "out")
    again = load_adapter(load_model(str(base)), folder / "out")
    assert torch.allclose(logits(again), logits(policy), atol=1e-3)
    assert (adapted - logits(load_model(str(base)))).abs().max() > 0.1


def test_every_setting_of_peft_is_listed_here():
    assert {field.name for field in fields(LoraConfig)} == KEPT.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", sorted(KEPT.keys() - SET_BY_PEFT))
def test_adapter_with_a_plain_setting_is_built_upon(base, tmp_path, name):
    options = {"layers_to_transform": [0], name: KEPT[name]} if name == "layers_pattern" else {name: KEPT[name]}
    configs_of_other_inits = name in ("eva_config", "corda_config", "loftq_config", "lora_ga_config")
    save_adapter(base, tmp_path / "first", **{} if configs_of_other_inits else options)
    assert_built_upon(base, tmp_path)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_adapter_with_a_special_setting_is_refused_by_name(base, tmp_path, name):
    save_adapter(base, tmp_path / "first")
    file = tmp_path / "first" / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: REFUSED[name]}))
    with pytest.raises(MannersError, match=rf"policy_from=X .*\({name}=.*merge_and_unload"):
        check_plain_lora(tmp_path / "first", "policy_from=X")


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga", "mica"])
def test_adapter_whose_start_changed_the_base_is_refused(base, tmp_path, init):
    save_adapter(base, tmp_path / "first")
    file = tmp_path / "first" / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": init}))
    with pytest.raises(MannersError, match=rf'init_lora_weights="{init}"'):
        check_plain_lora(tmp_path / "first", "policy_from=X")


@pytest.mark.parametrize("options, weight", [({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ({"bias": "all"}, "bias"), ({"use_dora": True}, "use_dora")])  # fmt: skip
def test_adapter_as_peft_writes_it_is_refused(base, tmp_path, options, weight):
    save_adapter(base, tmp_path / "first", **options)
    with pytest.raises(MannersError, match=weight):
        check_plain_lora(tmp_path / "first", "policy_from=X")


LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PATTERNS = st.dictionaries(
    st.sampled_from([*LAYERS, r"layers\.0.*_proj", "self_attn.q_proj"]), st.integers(1, 9), max_size=3
)
PLAIN_LORAS = st.fixed_dictionaries(
    {"r": st.sampled_from([2, 4, 6]), "lora_alpha": st.integers(1, 64), "use_rslora": st.booleans()},
    optional={
        "rank_pattern": PATTERNS,
        "alpha_pattern": PATTERNS,
        "target_modules": st.lists(st.sampled_from(LAYERS), min_size=1, unique=True)
        | st.sampled_from(["all-linear", r".*mlp\..*_proj", r"model\.layers\.1\..*v_proj"]),
        "exclude_modules": st.just([r"model.layers.0.self_attn.k_proj"]),
        "init_lora_weights": st.sampled_from([False, "gaussian"]),
    },
)  # fmt: skip


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=PLAIN_LORAS)
def test_any_plain_lora_is_built_upon(base, tmp_path, options):
    save_adapter(base, tmp_path / "first", **options)
    assert_built_upon(base, tmp_path)


def test_adapter_of_another_base_is_refused(base, tmp_path):
    """peft passes over weights that have no place, and over layers without weights."""
    save_adapter(base, tmp_path / "first")
    for layers in (1, 3):
        language_model("qwen2", num_hidden_layers=layers).save_pretrained(tmp_path / str(layers))
        with pytest.raises(MannersError, match="does not fit the model"):
            load_adapter(load_model(str(tmp_path / str(layers))), tmp_path / "first")
    language_model("qwen2", hidden_size=64).save_pretrained(tmp_path / "wide")
    with pytest.raises(MannersError, match=r"does not fit the model.*shape"):
        load_adapter(load_model(str(tmp_path / "wide")), tmp_path / "first")


def test_damaged_or_pickled_adapter_is_refused(base, tmp_path):
    save_adapter(base, tmp_path / "first")
    file = tmp_path / "first" / WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with pytest.raises(MannersError, match="is damaged"):
        check_plain_lora(tmp_path / "first", "policy_from=X")
    file.rename(tmp_path / "first" / "adapter_model.bin")
    with pytest.raises(MannersError, match=r"has no adapter_model\.safetensors"):
        check_plain_lora(tmp_path / "first", "policy_from=X")
    file.write_bytes(whole)
    (tmp_path / "first" / CONFIG).write_text("{")
    with pytest.raises(MannersError, match=r"adapter_config\.json is damaged"):
        check_plain_lora(tmp_path / "first", "policy_from=X")


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"r": ', '{"r": "4"}', '{"lora_alpha": "x"}', '{"alpha_pattern": {"(": 1}}', '{"rank_pattern": 3}'],
)
def test_damaged_adapter_config_is_refused(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(MannersError, match=r"adapter_config\.json is damaged: "):
        read_adapter_config(tmp_path)


def test_layers_that_the_weights_lack_are_refused(tmp_path):
    tiny = model_folder("tiny")
    check_target_modules(["q_proj", "mlp.down_proj", "layers.0.self_attn.v_proj"], tiny)
    check_target_modules("all-linear", tiny)
    check_target_modules(["v_porj"], None)  # a model that is not on this machine yet
    with pytest.raises(MannersError, match=r"=\[q_proj,v_porj\]: this model has no .*Did you mean 'v_proj'"):
        check_target_modules(["q_proj", "v_porj"], tiny)
