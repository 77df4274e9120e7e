"""Loading: the packaged base model, hub names without internet, refused checkpoints, and 4-bit weights."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, RobertaConfig

from manners.errors import MannersError
from manners.models import loading
from manners.models.lora import prepare_for_training, save_pretrained, trainable_parameters
from manners.models.pretrained import resolve_name
from manners.models.tokenizer import load_tokenizer
from manners.runtime import hub


@pytest.fixture
def model_dir(small_qwen2, tokenizer, tmp_path):
    small_qwen2.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_tiny_is_at_most_10_mb_and_without_code():
    files = list(Path(resolve_name("tiny")).iterdir())
    assert sum(f.stat().st_size for f in files) <= 10_000_000
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".jinja", ".md"}


def test_offline_hub_model_error_says_how_to_continue():
    with pytest.raises(MannersError) as error:
        loading.load_model("no-such-org/no-such-model")
    assert "no-such-org/no-such-model" in str(error.value)
    assert "model.name=FOLDER" in str(error.value)


def test_unreachable_hub_is_tried_once_with_a_timeout(monkeypatch):
    timeouts = []

    def refuse(address, timeout):
        timeouts.append(timeout)
        raise OSError("unreachable")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub.socket, "create_connection", refuse)
    hub.go_offline_if_unreachable.cache_clear()
    try:
        assert hub.go_offline_if_unreachable() and hub.go_offline_if_unreachable()
        assert timeouts == [hub.CONNECT_TIMEOUT]
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    finally:
        hub.go_offline_if_unreachable.cache_clear()


def test_load_tokenizer_names_missing_folder_and_template(model_dir):
    with pytest.raises(MannersError, match="no such folder"):
        load_tokenizer("./nowhere")
    (model_dir / "chat_template.jinja").unlink()
    with pytest.raises(MannersError, match=r"model\.chat_template=plain"):
        load_tokenizer(str(model_dir))
    assert load_tokenizer(str(model_dir), chat_template="plain").chat_template


def test_load_model_refuses_pickled_weights(model_dir, small_qwen2):
    (model_dir / "model.safetensors").unlink()
    torch.save(small_qwen2.state_dict(), model_dir / "pytorch_model.bin")
    with pytest.raises(MannersError, match="safetensors"):
        loading.load_model(str(model_dir))


def test_load_model_refuses_custom_code(model_dir):
    config = json.loads((model_dir / "config.json").read_text())
    config |= {
        "model_type": "custom",
        "auto_map": {"AutoModelForCausalLM": "custom.Model", "AutoConfig": "custom.Config"},
    }
    (model_dir / "config.json").write_text(json.dumps(config))
    (model_dir / "custom.py").write_text("raise SystemExit('custom code ran')")
    with pytest.raises(MannersError):
        loading.load_model(str(model_dir))


def test_stop_token_ids_unite_tokenizer_checkpoint_and_template(small_qwen2, tokenizer):
    vocab = tokenizer.get_vocab()
    small_qwen2.generation_config.eos_token_id = vocab["<|endoftext|>"]
    assert loading.stop_token_ids(small_qwen2, tokenizer) == sorted([vocab["<|endoftext|>"], vocab["<|im_end|>"]])


def test_qlora_trains_on_a_4bit_base(small_qwen2, tmp_path):
    """bitsandbytes quantizes on a CPU too, so this is a real 4-bit model."""
    from bitsandbytes.nn import Linear4bit

    from manners.data.batching import collate
    from manners.data.tokenize import TokenizedExample
    from manners.methods.sft import sft_loss

    small_qwen2.get_input_embeddings().weight.data.mul_(20)  # at their initial scale no logit could grow far
    small_qwen2.save_pretrained(tmp_path / "model")
    model = loading.load_model(str(tmp_path / "model"), quantization="nf4")
    layers = [m for m in model.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 2 * 7  # q k v o gate up down, in two layers
    assert layers[0].weight.dtype == torch.uint8 and layers[0].weight.numel() == 32 * 32 // 2  # two weights per byte
    model = prepare_for_training(model, "qlora", 8, 16, 0.0, "all-linear").train()
    assert all("lora_" in name for name in trainable_parameters(model))
    base_weight = layers[0].weight.clone()
    batch = collate([TokenizedExample(list(range(10, 30)), list(range(10, 30)))], 0)
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=2e-2)
    losses = []
    for _ in range(40):
        nll, _, num_tokens = sft_loss(model, batch)
        (nll / num_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(nll / num_tokens))
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(base_weight, layers[0].weight)


def test_4bit_gradients_are_the_same_after_inference(small_qwen2, tmp_path):
    """On CPUs with bf16 instructions bitsandbytes would repack the weights for inference."""
    from bitsandbytes.nn import Linear4bit

    small_qwen2.save_pretrained(tmp_path / "model")
    model = loading.load_model(str(tmp_path / "model"), quantization="nf4")
    layers = [m for m in model.modules() if isinstance(m, Linear4bit)]
    model = prepare_for_training(model, "qlora", 8, 16, 0.0, "all-linear")
    ids = torch.arange(10, 30)[None]

    def gradients():
        model.train().zero_grad()
        model(ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in trainable_parameters(model).items()}

    base_weight, before = layers[0].weight.clone(), gradients()
    with torch.no_grad():
        model.eval()(ids)
    after = gradients()
    assert any(g.abs().max() > 0 for g in before.values())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(base_weight, layers[0].weight)


def test_generate_texts_matches_decoding_without_cache(small_qwen2, tokenizer):
    """Batched, sorted and left-padded, against one prompt at a time by full forward passes."""
    from manners.data.tokenize import prompt_text
    from manners.evaluation.generate import generate_texts

    conversations = [
        [{"role": "user", "content": text}] for text in ("Hello!", "What does the lion eat, and where?", "Hi")
    ]
    replies = generate_texts(small_qwen2, tokenizer, conversations, max_new_tokens=8, batch_size=2)
    for conversation, reply in zip(conversations, replies, strict=True):
        ids = torch.tensor([tokenizer(prompt_text(conversation, tokenizer), add_special_tokens=False)["input_ids"]])
        new = ids
        for _ in range(8):
            new = torch.cat([new, small_qwen2(new).logits[:, -1].argmax(-1)[None]], 1)
        expected = new[0, ids.shape[1] :].tolist()
        end = next((i for i, t in enumerate(expected) if t in loading.stop_token_ids(small_qwen2, tokenizer)), None)
        assert reply.text == tokenizer.decode(expected[:end], skip_special_tokens=True).strip()
        assert reply.has_eos == (end is not None)


def test_generate_texts_ignores_the_checkpoints_settings(small_qwen2, tokenizer):
    from manners.evaluation.generate import generate_texts

    conversations = [[{"role": "user", "content": "Hello!"}]]
    expected = generate_texts(small_qwen2, tokenizer, conversations, max_new_tokens=12)
    small_qwen2.generation_config.update(
        repetition_penalty=5.0, do_sample=True, temperature=9.0, top_k=3, min_new_tokens=9
    )
    assert generate_texts(small_qwen2, tokenizer, conversations, max_new_tokens=12) == expected
    assert small_qwen2.generation_config.repetition_penalty == 5.0  # restored


def test_generate_texts_depends_on_the_seed_alone(small_qwen2, tokenizer):
    from manners.evaluation.generate import generate_texts

    conversations = [[{"role": "user", "content": "Hello!"}]] * 4
    first, repeated, other = (
        generate_texts(small_qwen2, tokenizer, conversations, max_new_tokens=12, do_sample=True, seed=s)
        for s in (1, 1, 2)
    )
    assert first == repeated != other


def test_offline_hub_dataset_error_says_how_to_continue():
    with pytest.raises(MannersError) as error:
        hub.load_dataset("no-such-org/no-such-data", None)
    assert "no-such-org/no-such-data" in str(error.value)
    assert "--repo-type dataset" in str(error.value) and "dataset.path=FOLDER" in str(error.value)


def test_positions_of_roberta_begin_after_those_of_padding():
    assert loading.max_positions(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512
    assert loading.max_positions(BertConfig(max_position_embeddings=512)) == 512


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_base_with_a_contradictory_decoding_can_be_saved(model_dir, tokenizer, tmp_path, kind):
    """Some bases have a temperature beside do_sample=false, which transformers may refuse to save after training."""
    decoding = {"temperature": 0.6, "top_p": 0.9, "do_sample": False, "eos_token_id": [tokenizer.eos_token_id, 7]}
    (model_dir / "generation_config.json").write_text(json.dumps(decoding))
    model = loading.load_model(str(model_dir))
    assert model.generation_config.temperature is None and model.generation_config.top_p is None
    assert model.generation_config.eos_token_id == decoding["eos_token_id"]
    model.generation_config.validate(strict=True)  # as when it is saved: minor contradictions are errors
    trained = prepare_for_training(model, kind, 4, 8, 0.0, "all-linear")
    save_pretrained(trained, tmp_path / "saved")
    assert list((tmp_path / "saved").glob("*.safetensors"))
