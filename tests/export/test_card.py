"""The model card has the run's metrics, and its code runs."""

import contextlib
import copy
import io
import re
import shlex

import pytest
import torch
import yaml

from manners.config.compose import RunSpec
from manners.evaluation.generate import generate_texts
from manners.export import card
from manners.methods.reward import predict_scores
from manners.models.reward_model import ScoreNormalizer
from manners.pipeline import run as pipeline
from manners.pipeline.stages.saving import save_language_model
from tests import commands
from tests.configs import compose
from tests.exports import PROMPTS, TABLE_ROW, config, export, finished_run, load_plain, saved_base, sft_run
from tests.families import classifier, language_model


def run_snippet(code, out, monkeypatch):
    """The output of the card's code, run in the exported folder."""
    monkeypatch.chdir(out)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(re.search(r"```python\n(.*?)```", code, re.DOTALL)[1], {})
    return output.getvalue().strip()


def test_card_has_metrics_and_a_snippet_that_runs(tmp_path, tokenizer, monkeypatch):
    run, model = sft_run(tmp_path, tokenizer)
    out = export(run, "--dtype", "float32")
    text = (out / "README.md").read_text()
    _, front_matter, body = text.split("---\n", 2)
    assert yaml.safe_load(front_matter) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["manners", "sft", "lora"],
    }
    rows = {name: (b, a) for name, b, a in re.findall(TABLE_ROW, body, re.MULTILINE)}
    assert rows["held-out loss, nats per token"] == ("2.500 [2.250, 2.750]", "1.250 [1.125, 1.375]")
    assert rows["replies with EOS"] == ("50.0 % [40.0, 60.0]", "90.0 % [80.0, 100.0]")
    assert "| What is a hare? | A bird. | A \\| mammal. |" in body
    assert "Helpful to good questions, probing to poor logic, blunt to wrong facts" in body
    assert "after the run `sft-99`" in body and "└→ run-1234" in body
    assert f"| command | {card.UNKNOWN} |" in body  # there is no tracking store
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", body, re.DOTALL)[1])
    assert settings["adapter"]["r"] == 16 and settings["method"]["name"] == "sft"
    assert run_snippet(text, out, monkeypatch) == generate_texts(model, tokenizer, PROMPTS[:1])[0].text


@pytest.mark.parametrize("value", ["dataset.loss_roles=user", "dataset.format=text"])
def test_generation_snippet_for_user_role_and_plain_text(tmp_path, tokenizer, monkeypatch, value):
    cfg = config(tmp_path, saved_base(tmp_path, tokenizer), "adapter.kind=none", value)
    run, model = finished_run(tmp_path, cfg), language_model("qwen2", seed=5, vocab_size=len(tokenizer))
    save_language_model(cfg, model, tokenizer, run / "model")
    out = export(run, "--dtype", "float32")
    role, prompt = ("user", []) if "user" in value else ("assistant", [{"role": "text", "content": "What is a hare?"}])
    expected = generate_texts(model, tokenizer, [prompt], role=role)[0].text
    assert run_snippet((out / "README.md").read_text(), out, monkeypatch) == expected


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "bert"])
def test_scoring_snippet_equals_predict_scores(tmp_path, tokenizer, monkeypatch, family):
    decoder, tokenizer = family != "bert", copy.deepcopy(tokenizer)
    if family == "gpt2":  # as GPT-2's own tokenizer, which pads with EOS
        tokenizer.pad_token = tokenizer.eos_token
    model = classifier(family, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    cfg = config(tmp_path, "tiny", "adapter.kind=none", f"model.decoder={decoder}", "method.name=reward")
    run = finished_run(tmp_path, cfg)
    (run / "reward_report.md").write_text("# run-1234\n\n| measure | baseline | model |\n")
    model.save_pretrained(run / "model")
    tokenizer.save_pretrained(run / "model")
    ScoreNormalizer(0.25, 2.0).save(run / "model")
    (run / "model" / "sanity.json").write_text("{}")
    out = export(run, "--dtype", "float32")
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    expected = 0.25 + 2 * predict_scores(model, tokenizer, 64, [(prompt, "Paris.")])[0]
    assert float(run_snippet((out / "README.md").read_text(), out, monkeypatch)) == pytest.approx(expected, abs=1e-5)
    assert (out / "sanity.json").exists() and ScoreNormalizer.load(out) == ScoreNormalizer(0.25, 2.0)


def test_card_metadata_names_only_hub_models_and_datasets(tmp_path):
    cfg = config(tmp_path, "Qwen/Qwen2.5-0.5B", "dataset.path=org/data")
    metadata = card.card_metadata(cfg)
    assert metadata["base_model"] == "Qwen/Qwen2.5-0.5B"
    assert metadata["datasets"] == ["org/data"]
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# local\n")
    cfg = config(tmp_path, str(tmp_path / "local"), "dataset.path=rows.jsonl")
    metadata = card.card_metadata(cfg)
    assert metadata["license"] == "apache-2.0"
    assert not {"base_model", "datasets"} & set(metadata)


def test_card_of_a_run_of_train_py(tmp_path, capsys):
    overrides = [*commands.small_strictbot(tmp_path), *commands.SMALL, "method.max_steps=2", f"output_dir={tmp_path}/o"]
    pipeline.run(RunSpec(compose(*overrides), overrides))
    run = commands.find_run(tmp_path / "o", "*")
    out = export(run)
    assert f"model and card: {out}" in capsys.readouterr().out
    text = (out / "README.md").read_text()
    assert f"| command | `python train.py {shlex.join(overrides)}` |" in text
    tags = commands.mlflow_runs(tmp_path / "o")[1][run.name].data.tags
    assert tags["manners.data_digest"] in text and f"torch {torch.__version__}" in text
    assert (run / "before_after.md").read_text().partition("\n")[2].strip() in text
    assert load_plain(out).dtype == torch.bfloat16
