"""The exported folder, loaded by plain transformers, equals the run's model."""

import json
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig

from manners.evaluation.generate import generate_texts
from manners.export import __main__ as command
from manners.export import folder
from manners.models import loading, lora
from manners.models.tokenizer import load_tokenizer
from manners.pipeline.stages.saving import save_language_model, save_policy
from tests.exports import (
    PROMPTS,
    config,
    export,
    finished_run,
    load_plain,
    logits,
    run_context,
    saved_base,
    sft_run,
    with_random_adapter,
)
from tests.families import language_model


@pytest.mark.parametrize("family, options", [("qwen2", {}), ("gpt2", {}), ("qwen2", {"use_dora": True}),
    ("qwen2", {"init_lora_weights": "pissa", "use_rslora": True})])  # fmt: skip
def test_float32_export_equals_the_adapted_model(tmp_path, tokenizer, family, options):
    run, model = sft_run(tmp_path, tokenizer, family, **options)
    out = export(run, "--dtype", "float32")
    expected, exported = logits(model), load_plain(out)
    with model.disable_adapter():
        assert (logits(model) - expected).abs().max() > 0.1 * expected.abs().max()
    assert (logits(exported) - expected).abs().max() < 2e-6 * expected.abs().max()
    exported_tokenizer = AutoTokenizer.from_pretrained(out)
    replies = [r.text for r in generate_texts(exported, exported_tokenizer, PROMPTS, 24)]
    assert replies == [r.text for r in generate_texts(model, tokenizer, PROMPTS, 24)]
    assert exported.generation_config.eos_token_id == loading.stop_token_ids(model, tokenizer)
    assert not (out / "adapter_config.json").exists() and not [*out.glob("*.bin")]
    assert exported_tokenizer.chat_template == tokenizer.chat_template
    assert "additional_special_tokens" in (out / "tokenizer_config.json").read_text()  # the name in transformers 4


@pytest.mark.parametrize("family, dtype", [("qwen2", torch.bfloat16), ("gpt2", torch.float32)])
def test_bfloat16_export_rounds_the_merged_weights_once(tmp_path, tokenizer, family, dtype):
    run, model = sft_run(tmp_path, tokenizer, family, dtype)
    out, expected = export(run, "--dtype", "bfloat16"), logits(model)
    rounded = {k: w.to(torch.bfloat16) for k, w in model.merge_and_unload().state_dict().items()}
    exported = load_file(out / "model.safetensors")
    assert exported and all(torch.equal(w, rounded[k]) for k, w in exported.items())
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    error = (logits(load_plain(out, torch.float32)) - expected).abs().max() / expected.abs().max()
    assert 0 < error < 2**-4  # rounding to bfloat16 changes a weight by at most 2**-9 of itself


LEAKS = {"repetition_penalty": 1.3, "top_k": 20, "top_p": 0.8, "temperature": 0.7, "min_new_tokens": 9, "num_beams": 2}
LEAKS |= {"do_sample": True, "no_repeat_ngram_size": 2, "suppress_tokens": [5], "max_length": 30}


@pytest.mark.parametrize("kind", ["lora", "none"])
@pytest.mark.parametrize("options", [(), ("evaluation.do_sample=true", "evaluation.temperature=0.6")])
def test_export_decodes_as_was_measured(tmp_path, tokenizer, kind, options):
    """The base's own generation config says otherwise: the card's greedy snippet would give other replies."""
    name = saved_base(tmp_path, tokenizer)
    stops = {"eos_token_id": [tokenizer.eos_token_id, 7], "pad_token_id": 3}
    (tmp_path / "qwen2-base" / "generation_config.json").write_text(json.dumps(LEAKS | stops))
    cfg = config(tmp_path, name, f"adapter.kind={kind}", *options)
    run, model = finished_run(tmp_path, cfg), with_random_adapter(loading.load_model(name), kind)
    save_language_model(cfg, model, tokenizer, run / "model")
    exported = load_plain(export(run))
    measured = {"eos_token_id": sorted({7, tokenizer.eos_token_id}), "pad_token_id": tokenizer.pad_token_id}
    measured |= {"do_sample": bool(options), "repetition_penalty": 1.0}
    measured |= {"temperature": 0.6, "top_k": 0, "top_p": 1.0} if options else {}
    for folder_name in (run / "model", run.parent / "out"):
        written = GenerationConfig.from_pretrained(folder_name)
        assert {name: getattr(written, name) for name in LEAKS | stops} == dict.fromkeys(LEAKS) | measured
    for prompt, expected in zip(PROMPTS, generate_texts(model, tokenizer, PROMPTS, 24), strict=True):
        inputs = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = exported.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert tokenizer.decode(output, skip_special_tokens=True).strip() == expected.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lora", "none"])
def test_export_has_the_dtype_of_the_base_by_default(tmp_path, tokenizer, kind, dtype):
    name = saved_base(tmp_path, tokenizer, dtype=dtype)
    cfg = config(tmp_path, name, f"adapter.kind={kind}")
    run, model = finished_run(tmp_path, cfg), with_random_adapter(loading.load_model(name), kind)
    save_language_model(cfg, model, tokenizer, run / "model")
    out = export(run)
    assert load_plain(out).dtype == dtype
    assert f"the weights are now in {str(dtype).removeprefix('torch.')}" in (out / "README.md").read_text()


def test_export_merges_the_adapters_of_sft_and_ppo(tmp_path, tokenizer):
    sft_dir, _ = sft_run(tmp_path, tokenizer)
    cfg = config(tmp_path, str(tmp_path / "qwen2-base"))
    run = finished_run(tmp_path, cfg, "ppo-5678")
    sft_model = PeftModel.from_pretrained(loading.load_model(cfg.model.name), str(sft_dir / "model")).merge_and_unload()
    model = with_random_adapter(sft_model, seed=2)
    dependencies = {"policy": SimpleNamespace(model_dir=sft_dir / "model")}
    expected = logits(model)
    save_policy(run_context(cfg, run, dependencies), model, tokenizer)
    assert torch.allclose(
        logits(load_plain(export(run, "--dtype", "float32"))), expected, atol=1e-5 * expected.abs().max()
    )


def test_export_of_full_fine_tuning_equals_the_model(tmp_path, tokenizer):
    cfg = config(tmp_path, saved_base(tmp_path, tokenizer), "adapter.kind=none")
    run, model = finished_run(tmp_path, cfg), language_model("qwen2", seed=5, vocab_size=len(tokenizer))
    save_language_model(cfg, model, tokenizer, run / "model")
    assert torch.equal(logits(load_plain(export(run, "--dtype", "float32"))), logits(model))


def test_qlora_adapter_is_merged_into_the_unquantized_base(tmp_path, tokenizer):
    pytest.importorskip("bitsandbytes")
    name = saved_base(
        tmp_path, tokenizer, dtype=torch.bfloat16, hidden_size=64
    )  # a multiple of the quantization block size
    cfg = config(tmp_path, name, "adapter.kind=qlora", "adapter.quantization=nf4")
    run, model = finished_run(tmp_path, cfg), with_random_adapter(loading.load_model(name, quantization="nf4"), "qlora")
    save_language_model(cfg, model, tokenizer, run / "model")
    out = export(run)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    merged = PeftModel.from_pretrained(loading.load_model(name), str(run / "model")).merge_and_unload()
    exported = load_file(out / "model.safetensors")
    assert all(torch.equal(w, merged.state_dict()[k].to(torch.bfloat16)) for k, w in exported.items())
    assert "with the base in 4 bits" in (out / "README.md").read_text()


def test_export_keeps_embeddings_of_added_tokens(tmp_path, tokenizer):
    name = saved_base(tmp_path, tokenizer, tie_word_embeddings=True)
    cfg, larger_tokenizer = config(tmp_path, name), load_tokenizer(name)
    larger_tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>"]})
    base = loading.load_model(name)
    lora.resize_embeddings(base, larger_tokenizer)
    run, model = finished_run(tmp_path, cfg), with_random_adapter(base, trainable_token_indices=[len(tokenizer)])
    save_language_model(cfg, model, larger_tokenizer, run / "model")
    out = export(run, "--dtype", "float32")
    ids = torch.tensor([[5, len(tokenizer), 9]])
    with torch.no_grad():
        expected, exported = model(ids).logits, load_plain(out)(ids).logits
    assert expected.shape[-1] == len(larger_tokenizer)
    assert torch.allclose(exported, expected, atol=1e-5 * expected.abs().max())
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("<|user|>") == len(tokenizer)


ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
RENAMED = [
    ("qwen2", {"rope_theta": 1e6}, {"rope_theta": 1e6}),
    ("gpt_neox", {"rotary_emb_base": 5e4, "rotary_pct": 0.5}, {"rotary_emb_base": 5e4, "rotary_pct": 0.5}),
    (
        "llama",
        {"rope_parameters": ROPE | {"original_max_position_embeddings": 32}},
        {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in ROPE.items() if k != "rope_theta"}},
    ),
]


@pytest.mark.parametrize("family, overrides, old_names", RENAMED)
def test_add_older_names_writes_transformers_4_config(tmp_path, tokenizer, family, overrides, old_names):
    """Checked by hand with 4.57.6, which llama.cpp's converter requires: same logits, same tokens."""
    model = language_model(family, vocab_size=len(tokenizer), **overrides)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    folder.add_older_names(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in old_names.items():
        saved = config[name]
        assert {k: saved[k] for k in value} == value if isinstance(value, dict) else saved == value
    assert torch.equal(logits(load_plain(tmp_path)), logits(model))
    tokenizer_config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (
        "extra_special_tokens" not in tokenizer_config
        and "<|im_start|>" in tokenizer_config["additional_special_tokens"]
    )
    assert AutoTokenizer.from_pretrained(tmp_path).all_special_tokens == tokenizer.all_special_tokens


def test_main_exports_the_latest_run_by_default(tmp_path, tokenizer, monkeypatch, capsys):
    run, _ = sft_run(tmp_path / "outputs", tokenizer)
    monkeypatch.chdir(tmp_path)
    command.main([])
    assert "chat.py run=outputs/exports/run-1234" in capsys.readouterr().out
    assert (tmp_path / "outputs" / "exports" / run.name / "model.safetensors").exists()


def test_main_finds_the_run_and_exports_it_in_output_dir(tmp_path, tokenizer, monkeypatch, capsys):
    run, _ = sft_run(tmp_path / "mine", tokenizer)
    monkeypatch.chdir(tmp_path)
    command.main(["latest", "--output-dir", "mine"])
    assert (tmp_path / "mine" / "exports" / run.name / "model.safetensors").exists()
    assert "chat.py run=mine/exports/run-1234" in capsys.readouterr().out


def test_interrupted_export_keeps_the_previous_one(tmp_path, tokenizer, monkeypatch):
    run, _ = sft_run(tmp_path, tokenizer)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder.card, "write_model_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(run)
    assert not (run.parent / "out").exists()
    monkeypatch.undo()
    out = export(run)
    first = sorted(p.name for p in out.iterdir())
    (out / "extra.txt").touch()
    monkeypatch.setattr(folder.card, "write_model_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(run, "--dtype", "bfloat16")
    assert (out / "extra.txt").exists() and json.loads((out / "config.json").read_text())["dtype"] == "float32"
    monkeypatch.undo()
    assert sorted(p.name for p in export(run).iterdir()) == first  # replaced, with no file of the previous export
    assert not [p for p in out.parent.iterdir() if p.name.startswith(".")]


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        command.main(list(arguments))
    return str(exit_info.value)


def test_write_export_overwrites_only_the_same_run(tmp_path, tokenizer, capsys):
    run, model = sft_run(tmp_path, tokenizer)
    unrelated = tmp_path / "mine"
    unrelated.mkdir()
    (unrelated / "precious.txt").touch()
    assert "choose another folder by --out FOLDER" in error_of(capsys, str(run), "--out", str(unrelated))
    assert [p.name for p in unrelated.iterdir()] == ["precious.txt"]
    out = export(run)
    cfg = OmegaConf.load(run / "model" / "manners.yaml")
    second = finished_run(tmp_path, cfg, "run-5678")
    save_language_model(cfg, model, tokenizer, second / "model")
    assert "is not an export of run-5678" in error_of(capsys, str(second), "--out", str(out))


def test_main_rejects_what_is_not_a_finished_run(tmp_path, tokenizer, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no finished run yet" in error_of(capsys)
    assert "was not trained here" in error_of(capsys, "org/model")
    assert "was not trained here" in error_of(capsys, saved_base(tmp_path, tokenizer))
    assert "neither a finished run" in error_of(capsys, "nothing")
    run, _ = sft_run(tmp_path, tokenizer)
    (run / "run.json").write_text(json.dumps({"status": "running", "weights_fingerprint": "abc"}))
    assert "has not finished" in error_of(capsys, str(run))
