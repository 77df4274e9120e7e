"""What is exported says, under plain transformers, what the run's own model said."""

import json
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

from manners.evaluation.generate import generate_texts
from manners.export import __main__ as command
from manners.export import folder
from manners.models import loading, lora
from manners.pipeline.stages import policy
from manners.pipeline.stages.context import save_language_model
from tests.exports import ASKED, config, export, finished, lively, logits, plain, sft, stored
from tests.families import language_model


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_in_32_bits_the_folder_is_the_adapted_model(tmp_path, tokenizer, family):
    run, model = sft(tmp_path, tokenizer, family)
    out = export(run, "--dtype", "float32")
    wanted, found = logits(model), plain(out)
    with model.disable_adapter():
        assert (logits(model) - wanted).abs().max() > 0.1 * wanted.abs().max()
    assert (logits(found) - wanted).abs().max() < 2e-6 * wanted.abs().max()
    own = AutoTokenizer.from_pretrained(out)
    said = [r.text for r in generate_texts(found, own, ASKED, 24)]
    assert said == [r.text for r in generate_texts(model, tokenizer, ASKED, 24)]
    assert found.generation_config.eos_token_id == loading.stop_token_ids(model, tokenizer)
    assert not (out / "adapter_config.json").exists() and not [*out.glob("*.bin")]
    assert own.chat_template == tokenizer.chat_template
    assert "additional_special_tokens" in (out / "tokenizer_config.json").read_text()  # as transformers 4 spells it


@pytest.mark.parametrize("family, dtype", [("qwen2", torch.bfloat16), ("gpt2", torch.float32)])
def test_in_16_bits_the_weights_are_the_merged_ones_rounded_once(tmp_path, tokenizer, family, dtype):
    run, model = sft(tmp_path, tokenizer, family, dtype)
    out, wanted = export(run), logits(model)
    whole = {k: w.to(torch.bfloat16) for k, w in model.merge_and_unload().state_dict().items()}
    found = load_file(out / "model.safetensors")
    assert found and all(torch.equal(w, whole[k]) for k, w in found.items())
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    apart = (logits(plain(out, torch.float32)) - wanted).abs().max() / wanted.abs().max()
    assert 0 < apart < 2**-4  # a weight is off by 2**-9 of itself at most


def test_what_ppo_made_of_an_sft_policy(tmp_path, tokenizer):
    earlier, _ = sft(tmp_path, tokenizer)
    cfg = config(tmp_path, str(tmp_path / "qwen2-base"))
    run = finished(tmp_path, cfg, "ppo-5678")
    start = PeftModel.from_pretrained(loading.load_model(cfg.model.name), str(earlier / "model")).merge_and_unload()
    model = lively(start, seed=2)
    given = {"policy": SimpleNamespace(model=earlier / "model")}
    policy.save_policy(SimpleNamespace(cfg=cfg, path=run, inputs=given), model, tokenizer)
    wanted = logits(model)
    assert torch.allclose(logits(plain(export(run, "--dtype", "float32"))), wanted, atol=1e-5 * wanted.abs().max())


def test_full_fine_tuning(tmp_path, tokenizer):
    cfg = config(tmp_path, stored(tmp_path, tokenizer), "adapter.kind=none")
    run, model = finished(tmp_path, cfg), language_model("qwen2", seed=5, vocab_size=len(tokenizer))
    save_language_model(cfg, model, tokenizer, run / "model")
    assert torch.equal(logits(plain(export(run, "--dtype", "float32"))), logits(model))


def test_an_adapter_over_4_bits_is_merged_into_the_base_as_it_was(tmp_path, tokenizer):
    pytest.importorskip("bitsandbytes")
    name = stored(tmp_path, tokenizer, dtype=torch.bfloat16, hidden_size=64)  # its weights fill whole blocks of 64
    cfg = config(tmp_path, name, "adapter.kind=qlora", "adapter.quantization=nf4")
    run, model = finished(tmp_path, cfg), lively(loading.load_model(name, quantization="nf4"), "qlora")
    save_language_model(cfg, model, tokenizer, run / "model")
    out = export(run)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    merged = PeftModel.from_pretrained(loading.load_model(name), str(run / "model")).merge_and_unload()
    found = load_file(out / "model.safetensors")
    assert all(torch.equal(w, merged.state_dict()[k].to(torch.bfloat16)) for k, w in found.items())
    assert "with the base in 4 bits" in (out / "README.md").read_text()


def test_tokens_that_were_added_keep_their_trained_rows(tmp_path, tokenizer):
    name = stored(tmp_path, tokenizer, tie_word_embeddings=True)
    cfg, more = config(tmp_path, name), loading.load_tokenizer(name)
    more.add_special_tokens({"extra_special_tokens": ["<|user|>"]})
    whole = loading.load_model(name)
    lora.resize_embeddings(whole, more)
    run, model = finished(tmp_path, cfg), lively(whole, trainable_token_indices=[len(tokenizer)])
    save_language_model(cfg, model, more, run / "model")
    out = export(run, "--dtype", "float32")
    ids = torch.tensor([[5, len(tokenizer), 9]])
    with torch.no_grad():
        wanted, found = model(ids).logits, plain(out)(ids).logits
    assert wanted.shape[-1] == len(more) and torch.allclose(found, wanted, atol=1e-5 * wanted.abs().max())
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("<|user|>") == len(tokenizer)


ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OLDER = [
    ("qwen2", {"rope_theta": 1e6}, {"rope_theta": 1e6}),
    ("gpt_neox", {"rotary_emb_base": 5e4, "rotary_pct": 0.5}, {"rotary_emb_base": 5e4, "rotary_pct": 0.5}),
    (
        "llama",
        {"rope_parameters": ROPE | {"original_max_position_embeddings": 32}},
        {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in ROPE.items() if k != "rope_theta"}},
    ),
]


@pytest.mark.parametrize("family, said, older", OLDER)
def test_transformers_4_finds_what_5_has_renamed(tmp_path, tokenizer, family, said, older):
    """Tried by hand with 4.57.6, which llama.cpp's converter asks for: the same logits, and the same tokens."""
    model = language_model(family, vocab_size=len(tokenizer), **said)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    folder.add_older_names(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in older.items():
        found = config[name]
        assert {k: found[k] for k in value} == value if isinstance(value, dict) else found == value
    assert torch.equal(logits(plain(tmp_path)), logits(model))
    spelled = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in spelled and "<|im_start|>" in spelled["additional_special_tokens"]
    assert AutoTokenizer.from_pretrained(tmp_path).all_special_tokens == tokenizer.all_special_tokens


def test_where_nothing_is_said_the_latest_run_goes_to_outputs(tmp_path, tokenizer, monkeypatch, capsys):
    run, _ = sft(tmp_path / "outputs", tokenizer)
    monkeypatch.chdir(tmp_path)
    command.main([])
    assert "chat.py run=outputs/exports/run-1234" in capsys.readouterr().out
    assert (tmp_path / "outputs" / "exports" / run.name / "model.safetensors").exists()


def test_a_kill_leaves_what_was_there(tmp_path, tokenizer, monkeypatch):
    run, _ = sft(tmp_path, tokenizer)

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder.card, "write", die)
    with pytest.raises(KeyboardInterrupt):
        export(run)
    assert not (run.parent / "out").exists()
    monkeypatch.undo()
    out = export(run)
    first = sorted(p.name for p in out.iterdir())
    (out / "left.txt").touch()
    monkeypatch.setattr(folder.card, "write", die)
    with pytest.raises(KeyboardInterrupt):
        export(run, "--dtype", "float32")
    assert (out / "left.txt").exists() and json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    monkeypatch.undo()
    assert sorted(p.name for p in export(run).iterdir()) == first  # rewritten, with nothing of the older one
    assert not [p for p in out.parent.iterdir() if p.name.startswith(".")]


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        command.main(list(arguments))
    return str(end.value)


def test_only_an_export_of_the_same_run_is_overwritten(tmp_path, tokenizer, capsys):
    run, model = sft(tmp_path, tokenizer)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "precious.txt").touch()
    assert "another place is --out FOLDER" in refusal(capsys, str(run), "--out", str(other))
    assert [p.name for p in other.iterdir()] == ["precious.txt"]
    out = export(run)
    cfg = OmegaConf.load(run / "model" / "manners.yaml")
    second = finished(tmp_path, cfg, "run-5678")
    save_language_model(cfg, model, tokenizer, second / "model")
    assert "is no export of run-5678" in refusal(capsys, str(second), "--out", str(out))


def test_what_is_no_finished_run_of_ours_is_refused(tmp_path, tokenizer, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no finished run yet" in refusal(capsys)
    assert "was not trained here" in refusal(capsys, "org/model")
    assert "was not trained here" in refusal(capsys, stored(tmp_path, tokenizer))
    assert "neither a finished run" in refusal(capsys, "nothing")
    run, _ = sft(tmp_path, tokenizer)
    (run / "run.json").write_text(json.dumps({"status": "running", "stage_mark": "abc"}))
    assert "has not finished" in refusal(capsys, str(run))
