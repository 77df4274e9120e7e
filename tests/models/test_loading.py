"""Loading: the packaged base, hub names through a local cache, and what is refused."""

import json
import os
from pathlib import Path

import pytest
import torch

from manners.errors import MannersError
from manners.models import loading
from manners.models.lora import prepare_for_training, trainable_parameters
from manners.runtime import hub


@pytest.fixture
def folder(small_qwen2, tokenizer, tmp_path):
    small_qwen2.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_packaged_base_is_small_and_safe():
    files = list(Path(loading.resolve_name("tiny")).iterdir())
    assert sum(f.stat().st_size for f in files) <= 10_000_000
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".jinja", ".md"}


def test_a_hub_name_without_internet_says_how_to_go_on():
    with pytest.raises(MannersError) as error:
        loading.load_model("no-such-org/no-such-model")
    assert "no-such-org/no-such-model" in str(error.value)
    assert "model.name=FOLDER" in str(error.value)


def test_an_unreachable_hub_is_asked_once_and_not_for_long(monkeypatch):
    asked = []

    def refuse(address, timeout):
        asked.append(timeout)
        raise OSError("unreachable")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub.socket, "create_connection", refuse)
    hub.go_offline_if_unreachable.cache_clear()
    try:
        assert hub.go_offline_if_unreachable() and hub.go_offline_if_unreachable()
        assert asked == [hub.PATIENCE]
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    finally:
        hub.go_offline_if_unreachable.cache_clear()


def test_a_missing_folder_and_a_missing_template_are_named(folder):
    with pytest.raises(MannersError, match="no such folder"):
        loading.load_tokenizer("./nowhere")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(MannersError, match=r"model\.chat_template=plain"):
        loading.load_tokenizer(str(folder))
    assert loading.load_tokenizer(str(folder), chat_template="plain").chat_template


def test_weights_in_a_pickle_are_refused(folder, small_qwen2):
    (folder / "model.safetensors").unlink()
    torch.save(small_qwen2.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(MannersError, match="safetensors"):
        loading.load_model(str(folder))


def test_a_model_that_brings_code_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "their_own",
        "auto_map": {"AutoModelForCausalLM": "theirs.Model", "AutoConfig": "theirs.C"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text("raise SystemExit('their code ran')")
    with pytest.raises(MannersError):
        loading.load_model(str(folder))


def test_stop_tokens_hold_those_of_tokenizer_checkpoint_and_template(small_qwen2, tokenizer):
    vocab = tokenizer.get_vocab()
    small_qwen2.generation_config.eos_token_id = vocab["<|endoftext|>"]
    assert loading.stop_token_ids(small_qwen2, tokenizer) == sorted([vocab["<|endoftext|>"], vocab["<|im_end|>"]])


def test_qlora_trains_over_a_base_in_four_bits(small_qwen2, tmp_path):
    """bitsandbytes quantizes on a CPU too, so this is the real thing."""
    from bitsandbytes.nn import Linear4bit

    from manners.data.batching import collate
    from manners.data.tokenize import TokenizedExample
    from manners.methods.sft import sft_loss

    small_qwen2.get_input_embeddings().weight.data.mul_(20)  # at its initial scale no logit could grow far
    small_qwen2.save_pretrained(tmp_path / "model")
    model = loading.load_model(str(tmp_path / "model"), quantization="nf4")
    layers = [m for m in model.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 2 * 7  # q k v o gate up down, in two layers
    assert layers[0].weight.dtype == torch.uint8 and layers[0].weight.numel() == 32 * 32 // 2  # two to a byte
    model = prepare_for_training(model, "qlora", 8, 16, 0.0, "all-linear").train()
    assert all("lora_" in name for name in trainable_parameters(model))
    frozen = layers[0].weight.clone()
    batch = collate([TokenizedExample(list(range(10, 30)), list(range(10, 30)))], 0)
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=2e-2)
    losses = []
    for _ in range(40):
        nll, _, trained = sft_loss(model, batch)
        (nll / trained).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(nll / trained))
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(frozen, layers[0].weight)


def test_a_base_in_four_bits_teaches_the_same_after_it_has_answered(small_qwen2, tmp_path):
    """On CPUs with bf16 instructions bitsandbytes would lay the weights out for answers alone."""
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

    packed, before = layers[0].weight.clone(), gradients()
    with torch.no_grad():
        model.eval()(ids)
    after = gradients()
    assert any(g.abs().max() > 0 for g in before.values())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(packed, layers[0].weight)


def test_greedy_replies_are_those_of_plain_generate(small_qwen2, tokenizer):
    """Batched, sorted and padded on the left, against one prompt at a time by transformers itself."""
    from manners.data.tokenize import prompt_text
    from manners.evaluation.generate import generate_texts

    chats = [[{"role": "user", "content": text}] for text in ("Hello!", "What does the lion eat, and where?", "Hi")]
    replies = generate_texts(small_qwen2, tokenizer, chats, max_new_tokens=8, batch_size=2)
    for chat, reply in zip(chats, replies, strict=True):
        ids = torch.tensor([tokenizer(prompt_text(chat, tokenizer), add_special_tokens=False)["input_ids"]])
        new = ids
        for _ in range(8):
            new = torch.cat([new, small_qwen2(new).logits[:, -1].argmax(-1)[None]], 1)
        said = new[0, ids.shape[1] :].tolist()
        end = next((i for i, t in enumerate(said) if t in loading.stop_token_ids(small_qwen2, tokenizer)), None)
        assert reply.text == tokenizer.decode(said[:end], skip_special_tokens=True).strip()
        assert reply.ended == (end is not None)


def test_a_checkpoint_cannot_change_how_replies_are_sampled(small_qwen2, tokenizer):
    from manners.evaluation.generate import generate_texts

    chat = [[{"role": "user", "content": "Hello!"}]]
    plain = generate_texts(small_qwen2, tokenizer, chat, max_new_tokens=12)
    small_qwen2.generation_config.update(
        repetition_penalty=5.0, do_sample=True, temperature=9.0, top_k=3, min_new_tokens=9
    )
    assert generate_texts(small_qwen2, tokenizer, chat, max_new_tokens=12) == plain
    assert small_qwen2.generation_config.repetition_penalty == 5.0  # put back as it was


def test_sampling_depends_on_the_seed_alone(small_qwen2, tokenizer):
    from manners.evaluation.generate import generate_texts

    chats = [[{"role": "user", "content": "Hello!"}]] * 4
    first, again, other = (
        generate_texts(small_qwen2, tokenizer, chats, max_new_tokens=12, do_sample=True, seed=s) for s in (1, 1, 2)
    )
    assert first == again != other


def test_a_hub_dataset_without_internet_says_how_to_go_on():
    with pytest.raises(MannersError) as error:
        hub.load_dataset("no-such-org/no-such-data", None)
    assert "no-such-org/no-such-data" in str(error.value)
    assert "--repo-type dataset" in str(error.value) and "dataset.path=FOLDER" in str(error.value)
