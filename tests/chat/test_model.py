"""The adapter scale against peft and against weights merged by hand."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from manners.chat.model import load_chat_model, merge_dora
from manners.errors import MannersError
from manners.models import lora
from manners.models.adapter_config import read_adapter_config
from manners.models.loading import load_model
from manners.models.tokenizer import load_tokenizer
from manners.pipeline.model_ref import ModelRef
from tests.chat import checkpoints

IDS = torch.tensor([[5, 99, 1023, 7, 300, 2000]])


@torch.no_grad()
def logits(model, ids=IDS):
    return model(ids).logits


def with_peft(base_folder, folder):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder).eval()


def merged(base_folder, folder, scale):
    """The base with ``scale * alpha / r * B A`` added to its weights, as in the LoRA paper."""
    model = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    settings = json.loads((folder / "adapter_config.json").read_text())
    weights = load_file(folder / "adapter_model.safetensors")
    for name, lora_a in weights.items():
        if ".lora_A." in name:
            update = settings["lora_alpha"] / settings["r"] * weights[name.replace("lora_A", "lora_B")] @ lora_a
            layer = model.get_submodule(name.removeprefix("base_model.model.").split(".lora_A")[0])
            layer.weight.data += scale * (update.T if isinstance(layer, Conv1D) else update)
    return model


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_scale_0_is_base_and_1_is_peft_bit_for_bit(tmp_path, family):
    base_folder = checkpoints.base(tmp_path, family)
    folder = checkpoints.adapter(base_folder, tmp_path / "run")
    before, after = (
        logits(AutoModelForCausalLM.from_pretrained(base_folder).eval()),
        logits(with_peft(base_folder, folder)),
    )
    assert (before - after).abs().max() > 0.1
    chat_model = checkpoints.load(folder)
    assert torch.equal(logits(chat_model.model), after)
    for scale in (0.3, 0, 2, -1, 1, 0, 0.7):
        chat_model.set_scale(scale)
        if scale in (0, 1):
            assert torch.equal(logits(chat_model.model), after if scale else before)
    assert chat_model.base_name == str(base_folder)


def test_plain_loras_share_the_weights_of_their_base(tmp_path):
    base_folder, bases = checkpoints.base(tmp_path), {}
    folders = [checkpoints.adapter(base_folder, tmp_path / f"run{seed}", seed) for seed in (1, 2)]
    tokens = checkpoints.adapter(base_folder, tmp_path / "tokens", 3, trainable_token_indices=[5])
    dora = checkpoints.adapter(base_folder, tmp_path / "dora", 4, use_dora=True)
    one, other, with_tokens, with_dora = (
        load_chat_model(ModelRef(f.name, str(f)), "cpu", bases=bases) for f in (*folders, tokens, dora)
    )
    assert one.model is other.model and len({id(m.model) for m in (one, with_tokens, with_dora)}) == 3
    for used, unused, folder in ((one, other, folders[0]), (other, one, folders[1])):
        used.set_scale(1)
        unused.set_scale(0)
        assert torch.equal(logits(used.model), logits(checkpoints.load(folder).model))


@pytest.mark.parametrize("scale", [0.5, -1, 2])
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_set_scale_multiplies_the_lora_update(tmp_path, family, scale):
    base_folder = checkpoints.base(tmp_path, family)
    folder = checkpoints.adapter(base_folder, tmp_path / "run")
    chat_model = checkpoints.load(folder)
    chat_model.set_scale(scale)
    by_hand = logits(merged(base_folder, folder, scale))
    assert torch.allclose(logits(chat_model.model), by_hand, atol=2e-4)
    assert (logits(with_peft(base_folder, folder)) - by_hand).abs().max() > 0.1


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_scale_lora_reads_rslora_and_rank_pattern_like_peft(tmp_path, settings):
    base_folder = checkpoints.base(tmp_path)
    folder = checkpoints.adapter(base_folder, tmp_path / "run", **settings)
    ours, peft = logits(checkpoints.load(folder).model), logits(with_peft(base_folder, folder))
    assert torch.allclose(ours, peft, atol=1e-5)  # sums may be in another order, by where the weights lie in memory


@pytest.mark.parametrize("family, tied", [("qwen2", True), ("qwen2", False), ("gpt2", True)])
def test_scale_lora_restores_added_token_embeddings(tmp_path, family, tied):
    """At scale 1 as peft loads them, at 0 as before training."""
    base_folder = checkpoints.base(tmp_path, family, tie_word_embeddings=tied)
    tokenizer = load_tokenizer(str(base_folder), added_tokens=["<|end|>"])
    new, model = tokenizer.convert_tokens_to_ids("<|end|>"), AutoModelForCausalLM.from_pretrained(base_folder)
    lora.resize_embeddings(model, tokenizer)
    model = lora.prepare_for_training(model, "lora", 4, 8, 0.0, "all-linear", trainable_token_indices=[new])
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.2 * torch.randn_like(p)
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    ids = torch.tensor([[5, new, 99]])
    with_peft_adapter = lora.load_adapter(
        AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "run", tokenizer
    )
    chat_model = checkpoints.load(tmp_path / "run")
    chat_model.set_scale(-1)
    chat_model.set_scale(1)
    assert torch.equal(logits(chat_model.model, ids), logits(with_peft_adapter, ids))
    chat_model.set_scale(0)
    with with_peft_adapter.disable_adapter():
        assert torch.equal(logits(chat_model.model, ids), logits(with_peft_adapter, ids))


def test_set_scale_interpolates_fully_fine_tuned_weights(tmp_path):
    base_folder = checkpoints.base(tmp_path)
    run = checkpoints.trained(base_folder, tmp_path / "run")
    before, after = (AutoModelForCausalLM.from_pretrained(f).eval() for f in (base_folder, tmp_path / "run"))
    chat_model = load_chat_model(run, "cpu")
    assert torch.equal(logits(chat_model.model), logits(after))
    for scale, model in ((0, before), (0.4, None), (2, None), (1, after), (-1, None), (0, before)):
        chat_model.set_scale(scale)
        assert model is None or torch.equal(logits(chat_model.model), logits(model))
    chat_model.set_scale(0.5)
    for ours, one, two in zip(chat_model.model.parameters(), before.parameters(), after.parameters(), strict=True):
        assert torch.allclose(ours, (one + two) / 2, atol=1e-6)


SPECIAL = {"bias": "all", "init_lora_weights": "pissa", "lora_bias": True}
SPECIAL |= {"target_parameters": ["experts"], "alora_invocation_tokens": [5]}


@pytest.mark.parametrize("name, value", SPECIAL.items())
def test_chat_refuses_more_than_a_plain_lora_by_name(tmp_path, name, value):
    folder = checkpoints.adapter(checkpoints.base(tmp_path), tmp_path / "run")
    file = tmp_path / "run" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(MannersError, match=rf"more than a plain LoRA \({name}.*merge_and_unload"):
        checkpoints.load(folder)


@pytest.mark.parametrize("family, settings", [("qwen2", {}), ("gpt2", {"use_rslora": True})])
def test_dora_is_merged_and_its_weights_interpolated(tmp_path, family, settings):
    base_folder = checkpoints.base(tmp_path, family)
    folder = checkpoints.adapter(base_folder, tmp_path / "run", use_dora=True, **settings)
    base, adapted = AutoModelForCausalLM.from_pretrained(base_folder).eval(), with_peft(base_folder, folder)
    chat_model, merged_weights = checkpoints.load(folder), adapted.merge_and_unload()
    assert torch.allclose(logits(chat_model.model), logits(with_peft(base_folder, folder)), atol=1e-4)
    chat_model.set_scale(0)
    assert torch.equal(logits(chat_model.model), logits(base))
    chat_model.set_scale(2)
    with torch.no_grad():
        for weight, after in zip(base.parameters(), merged_weights.parameters(), strict=True):
            weight.copy_(2 * after - weight)
    assert torch.allclose(logits(chat_model.model), logits(base), atol=1e-3)


def test_dora_on_a_base_in_4_bits_is_refused_with_a_remedy(tmp_path):
    base_folder = checkpoints.base(tmp_path)
    folder = checkpoints.adapter(base_folder, tmp_path / "run", use_dora=True)
    base = load_model(str(base_folder), quantization="nf4")
    with pytest.raises(MannersError, match=r"DoRA on a base in 4 bits.* python -m manners.export .* --out FOLDER"):
        merge_dora(base, folder, read_adapter_config(folder), None)


def test_chat_reads_an_alpha_pattern_as_peft_does(tmp_path):
    base_folder = checkpoints.base(tmp_path)
    run = checkpoints.adapter(base_folder, tmp_path / "run")
    file = tmp_path / "run" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alpha_pattern": {"q_proj": 3, r"layers\.0.*": 50}}))
    with_peft_adapter = lora.load_adapter(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "run")
    assert torch.allclose(logits(checkpoints.load(run).model), logits(with_peft_adapter), atol=1e-6)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alpha_pattern": {}}))
    assert not torch.allclose(logits(checkpoints.load(run).model), logits(with_peft_adapter), atol=1e-3)


def test_chat_refuses_weights_of_another_rank(tmp_path):
    run = checkpoints.adapter(checkpoints.base(tmp_path), tmp_path / "run")
    file = tmp_path / "run" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 5}))
    with pytest.raises(MannersError, match=r"says r=5, and its weights are of rank \d+: the two files are"):
        checkpoints.load(run)


def test_set_scale_raises_for_a_model_without_base():
    chat_model = load_chat_model(ModelRef("tiny", "tiny"), "cpu")
    chat_model.set_scale(1)
    with pytest.raises(MannersError, match=r"tiny was not trained here.*Choose a run: run=latest"):
        chat_model.set_scale(0)


def test_load_chat_model_reports_what_is_missing(tmp_path):
    base_folder = checkpoints.base(tmp_path)
    (base_folder / "chat_template.jinja").unlink()
    with pytest.raises(MannersError, match=r"run=base-qwen2-0 has no chat template.*model.chat_template=plain"):
        checkpoints.load(base_folder)
    with pytest.raises(MannersError, match=r"hub cannot be reached, and model 'no/where'.*set user=FOLDER"):
        load_chat_model(ModelRef("no/where", "no/where"), "cpu", "user")
    run = checkpoints.adapter(checkpoints.base(tmp_path, seed=3), tmp_path / "run")
    (tmp_path / "base-qwen2-3" / "config.json").unlink()
    with pytest.raises(MannersError, match=r"run was trained from .*base-qwen2-3"):
        checkpoints.load(run)
