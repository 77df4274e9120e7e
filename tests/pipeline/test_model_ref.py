"""Which model a name means, and which names are refused."""

import os
import shutil

import pytest
import torch
from omegaconf import OmegaConf

from manners.config.compose import compose as compose_config
from manners.config.compose import register
from manners.errors import MannersError
from manners.models.reward_model import head_modules, load_reward_base, load_reward_model, normalized_scores
from manners.pipeline import model_ref
from manners.pipeline.model_ref import ModelRef, load_reward_network
from manners.pipeline.stages.saving import save_config
from manners.runtime.run_dir import RunArtifact
from tests.configs import changed, compose
from tests.exports import sft_run, with_random_adapter
from tests.families import classifier
from tests.pipeline.test_dependencies import SMALL, base_model, edit, finished_run


@pytest.fixture
def out(tmp_path):
    """Three finished runs: SFT, reward model and PPO, in this order."""
    for time, method in enumerate(("sft", "reward", "ppo")):
        finished_run(tmp_path, f"my-{method}", compose(SMALL, f"method={method}"))
        os.utime(tmp_path / "runs" / f"my-{method}" / "run.json", (time, time))
    return tmp_path


def config(out, *overrides):
    register()
    return compose_config("evaluate", [f"output_dir={out}", *overrides])


def error_of(name, out):
    with pytest.raises(MannersError) as error:
        model_ref.resolve_model(name, config(out))
    return str(error.value)


def test_latest_is_the_run_that_finished_last(out):
    assert model_ref.resolve_model("latest", config(out)).name == "my-ppo"
    assert model_ref.latest_run(config(out), ("sft",)).name == "my-sft"


def test_latest_is_refused_without_finished_runs(tmp_path):
    assert "has no finished run yet. Train one: python train.py" in error_of("latest", tmp_path)


def test_runs_that_have_not_finished_are_not_proposed(out):
    unfinished = out / "runs" / "my-sfx"
    unfinished.mkdir()
    (unfinished / "run.json").write_text('{"status": "running"}')
    error = error_of("my-sfxx", out)
    shutil.rmtree(unfinished)
    assert "Did you mean 'my-sft'" in error


def test_name_folder_and_hub_name_are_resolved(out):
    cfg = config(out)
    assert model_ref.resolve_model("my-sft", cfg).config.method.name == "sft"
    assert model_ref.resolve_model(str(out / "runs" / "my-sft"), cfg).name == "my-sft"
    hub = model_ref.resolve_model("openai-community/gpt2", cfg)
    assert (hub.path, hub.config, hub.reward_model) == ("openai-community/gpt2", None, None)


def test_reward_model_is_refused_as_a_language_model(out):
    needed = "one of sft, dpo, kto, ppo, rloo is needed"
    assert f"run=my-reward is a run of method=reward; {needed}" in error_of("my-reward", out)


def test_unknown_name_is_refused_with_the_nearest_run(out):
    assert "Did you mean 'my-sft'?" in error_of("my-sfd", out)


def test_adapter_is_refused_once_its_base_has_changed(tmp_path):
    """For chat, evaluate and export alike: they all ask here, before torch is imported."""
    base_model(tmp_path / "base")
    trained = compose(SMALL, f"model.name={tmp_path / 'base'}")
    finished_run(tmp_path, "adapter", trained, adapter=True)
    finished_run(tmp_path, "whole", trained)
    cfg = config(tmp_path)
    assert model_ref.resolve_model("adapter", cfg).name == "adapter"
    edit(tmp_path / "base" / "tokenizer.json", "1", "2")
    for name in ("adapter", str(tmp_path / "runs" / "adapter" / "model")):
        with pytest.raises(MannersError, match=r"was trained on another model than .*/base holds now"):
            model_ref.resolve_model(name, cfg)
    whole = model_ref.resolve_model("whole", cfg)  # needs its base for comparisons alone
    with pytest.raises(MannersError, match="whole was trained on another model"):
        whole.check_base()
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(MannersError, match=r"run=adapter: the model that it was trained on, .*/base, is gone"):
        model_ref.resolve_model("adapter", cfg)


@pytest.mark.parametrize("own, logged", [([], "strictbot"), (["experiment_name=mine"], "mine")])
def test_evaluation_is_logged_beside_its_run(tmp_path, own, logged):
    finished_run(tmp_path, "run", compose(SMALL, "experiment_name=strictbot"))
    cfg = config(tmp_path, *own)
    model_ref.use_experiment_of([model_ref.resolve_model("run", cfg)], cfg)
    assert cfg.tracking.experiment == logged


def test_evaluation_of_a_foreign_model_has_an_experiment(tmp_path):
    cfg = config(tmp_path)
    model_ref.use_experiment_of([model_ref.resolve_model("tiny", cfg)], cfg)
    assert cfg.tracking.experiment == "manners"


def test_reward_from_auto_is_refused_without_a_reward_model(out):
    cfg = config(out, "reward_from=auto")
    with pytest.raises(MannersError, match="Name one: reward_from=RUN"):
        model_ref.resolve_reward_model(cfg, [model_ref.resolve_model("my-sft", cfg)])


# --- Loaded as they were trained ---


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_runs_are_loaded_with_the_attention_of_their_training(tmp_path, tokenizer, attention):
    run, _ = sft_run(tmp_path, tokenizer)
    cfg = OmegaConf.merge(OmegaConf.load(run / "model" / "manners.yaml"), {"model": {"attn_implementation": attention}})
    save_config(cfg, run / "model")
    ref = ModelRef("run", str(run / "model"), RunArtifact(run / "model", "", "run"))
    assert model_ref.load_model_ref(ref, "cpu").model.config._attn_implementation == attention
    classifier("qwen2", pad_token_id=0).save_pretrained(tmp_path / "reward")
    assert load_reward_network(tmp_path / "reward", cfg, "cpu").config._attn_implementation == attention


def test_reward_model_on_a_4bit_base_is_loaded_in_4_bits(tmp_path, tokenizer):
    """Merged into the whole weights it would give PPO other scores than were measured."""
    pytest.importorskip("bitsandbytes")
    classifier("qwen2", hidden_size=64, pad_token_id=0).save_pretrained(tmp_path / "base")
    bits = {"quantization": "nf4", "double_quantization": True}
    network = load_reward_base(str(tmp_path / "base"), tokenizer, **bits)
    options = {"task_type": "SEQ_CLS", "modules_to_save": head_modules(network)}
    trained = with_random_adapter(network, "qlora", **options)
    trained.save_pretrained(tmp_path / "model")
    cfg = changed("adapter.kind=qlora", "adapter.quantization=nf4")
    batch = {"input_ids": torch.arange(2, 42)[None], "attention_mask": torch.ones(1, 40, dtype=torch.long)}
    with torch.no_grad():
        expected = normalized_scores(trained, batch)
        assert torch.allclose(normalized_scores(load_reward_network(tmp_path / "model", cfg, "cpu"), batch), expected)
        merged = normalized_scores(load_reward_model(tmp_path / "model"), batch)
    assert not torch.allclose(merged, expected, atol=1e-3)
