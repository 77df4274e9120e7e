"""What a stage saves is loaded again and held against the trained model; any config is read as it was written."""

import json
from dataclasses import fields, is_dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from manners.errors import MannersError
from manners.models import lora
from manners.models.loading import load_model
from manners.pipeline.stages import saving
from manners.pipeline.stages.context import starting_policy
from manners.runtime.run_dir import RunArtifact
from tests.configs import compose
from tests.exports import config, finished_run, logits, run_context, saved_base, sft_run, with_random_adapter

# --- Models ---


def whole_run(tmp_path, tokenizer):
    """The directory of a run with full fine-tuning."""
    cfg = config(tmp_path, saved_base(tmp_path, tokenizer), "adapter.kind=none")
    run, model = finished_run(tmp_path, cfg), with_random_adapter(load_model(cfg.model.name), "none")
    saving.save_language_model(cfg, model, tokenizer, run / "model")
    return run


def policy_run(tmp_path, tokenizer, start, kind, **options):
    """A run on what ``start`` names, and its trained model."""
    starts = {"adapter": lambda: sft_run(tmp_path, tokenizer)[0], "whole": lambda: whole_run(tmp_path, tokenizer)}
    inputs = {"policy": SimpleNamespace(model_dir=starts[start]() / "model")} if start != "base" else {}
    name = str(tmp_path / "qwen2-base") if inputs else saved_base(tmp_path, tokenizer)
    cfg = config(tmp_path, name, f"adapter.kind={kind}")
    run = run_context(cfg, finished_run(tmp_path, cfg, "second"), inputs)
    return run, with_random_adapter(starting_policy(run), kind, seed=2, **options)


@pytest.mark.parametrize("kind", ["lora", "none"])
@pytest.mark.parametrize("start", ["base", "adapter", "whole"])
def test_saved_policy_is_the_one_that_was_trained(tmp_path, tokenizer, start, kind):
    run, model = policy_run(tmp_path, tokenizer, start, kind)
    expected = logits(model)
    saving.save_policy(run, model, tokenizer)
    assert torch.allclose(logits(saving.load_saved_policy(run, tokenizer)), expected, atol=1e-4 * expected.abs().max())
    assert (run.path / "model" / "adapter_config.json").exists() == (kind == "lora" and start != "whole")


@pytest.mark.parametrize("start, option, saved", [("base", "use_dora", "adapter_config.json"),
    ("adapter", "use_dora", "config.json"), ("adapter", "use_rslora", "adapter_config.json")])  # fmt: skip
def test_saved_variant_is_the_policy_that_was_trained(tmp_path, tokenizer, start, option, saved):
    """The sum of a LoRA and a DoRA is no adapter; that of a LoRA and an rsLoRA is a LoRA."""
    run, model = policy_run(tmp_path, tokenizer, start, "lora", **{option: True})
    expected = logits(model)
    saving.save_policy(run, model, tokenizer)
    assert torch.allclose(logits(saving.load_saved_policy(run, tokenizer)), expected, atol=1e-4 * expected.abs().max())
    assert (run.path / "model" / saved).exists()


@pytest.mark.parametrize("start", ["base", "adapter"])
def test_save_policy_refuses_what_is_not_the_trained_model(tmp_path, tokenizer, start, monkeypatch):
    """As with rsLoRA before: an adapter whose scale is lost on the way."""
    run, model = policy_run(tmp_path, tokenizer, start, "lora")
    load_adapter = lora.load_adapter

    def with_half_the_scale(*arguments):
        adapted = load_adapter(*arguments)
        for layer in adapted.modules():
            if hasattr(layer, "scale_layer"):
                layer.scale_layer(0.5)
        return adapted

    monkeypatch.setattr(lora, "load_adapter", with_half_the_scale)
    with pytest.raises(MannersError, match=r"held-out loss is \d+\.\d{4} as trained and \d+\.\d{4} as loaded"):
        saving.save_policy(run, model, tokenizer)


def test_check_same_allows_rounding_and_no_more(tmp_path):
    saving.check_same("score", [1.0, -2000.0, 0.0], [1.00001, -2000.01, 1e-6], tmp_path)
    for saved in ([1.001, 2.0], [1.0, float("nan")]):
        with pytest.raises(MannersError, match="score is"):
            saving.check_same("score", [1.0, 2.0], saved, tmp_path)


@pytest.mark.parametrize("generation", [{"temperature": 0.7, "top_p": 0.9, "do_sample": False}, {"top_k": 5},
    {"min_p": 0.1}, {"length_penalty": 2.0}, {"typical_p": 0.5}, {"num_beams": 1, "early_stopping": True}])  # fmt: skip
@pytest.mark.parametrize("kind", ["lora", "none"])
def test_base_with_unused_sampling_settings_can_be_saved(tmp_path, tokenizer, generation, kind):
    """transformers refuses to write what it read."""
    name = saved_base(tmp_path, tokenizer)
    (tmp_path / "qwen2-base" / "generation_config.json").write_text(json.dumps(generation))
    cfg = config(tmp_path, name, f"adapter.kind={kind}")
    model = with_random_adapter(load_model(name), kind)
    saving.save_language_model(cfg, model, tokenizer, tmp_path / "model")
    assert (tmp_path / "model" / "generation_config.json").exists()


# --- Configs ---


def options_of(config_type, prefix=""):
    """Every option below a schema, with its type."""
    for field in fields(config_type):
        nested = is_dataclass(field.type)
        yield from options_of(field.type, f"{prefix}{field.name}.") if nested else [(prefix + field.name, field.type)]


TEXTS = st.text(max_size=20) | st.text(alphabet="\\${}ab:#'\"-[] \n\r\t\x85\u2028e1.0_xon~&*!%@`", max_size=12)
NUMBERS = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False)
NESTED = st.recursive(st.none() | st.booleans() | NUMBERS | TEXTS, lambda v: st.lists(v) | st.dictionaries(TEXTS, v))
VALUES = {str: TEXTS, str | None: st.none() | TEXTS, list[str]: st.lists(TEXTS, max_size=3), bool: st.booleans()}
VALUES |= {float: NUMBERS, float | None: st.none() | NUMBERS, int: st.integers(), int | None: st.none() | st.integers()}


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(["sft", "reward", "ppo"]), data=st.data())
def test_any_config_is_read_as_it_was_written(tmp_path, method, data):
    cfg = compose(f"method={method}")
    options = [*options_of(OmegaConf.get_type(cfg.method), "method."), *options_of(OmegaConf.get_type(cfg))]
    options = [
        (key, kind) for key, kind in options if OmegaConf.select(cfg, key.rpartition(".")[0] or "seed") is not None
    ]
    for key, kind in data.draw(st.lists(st.sampled_from(options), min_size=3, max_size=6)):
        OmegaConf.update(cfg, key, saving.escape_interpolations(data.draw(VALUES.get(kind, NESTED))), merge=False)
    saving.save_config(cfg, tmp_path)
    read = RunArtifact(tmp_path, "", "").config
    assert isinstance(read, DictConfig)
    written = {**OmegaConf.to_container(cfg, resolve=True), "base_digest": read.base_digest}
    assert OmegaConf.to_container(read, resolve=True) == written
