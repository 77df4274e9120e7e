"""The card tells the run's own numbers, and its code does what it says."""

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
from manners.pipeline.stages.context import save_language_model
from tests import commands
from tests.configs import compose
from tests.exports import ASKED, LINE, config, export, finished, plain, sft, stored
from tests.families import classifier, language_model


def said_by(code, out, monkeypatch):
    """What the card's code prints, run in the exported folder."""
    monkeypatch.chdir(out)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(re.search(r"```python\n(.*?)```", code, re.DOTALL)[1], {})
    return printed.getvalue().strip()


def test_the_card_has_the_numbers_of_the_run_and_code_that_runs(tmp_path, tokenizer, monkeypatch):
    run, model = sft(tmp_path, tokenizer)
    out = export(run, "--dtype", "float32")
    text = (out / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["manners", "sft", "lora"],
    }
    rows = {name: (b, a) for name, b, a in re.findall(LINE, body, re.MULTILINE)}
    assert rows["held-out loss, nats/token"] == ("2.500 [2.250, 2.750]", "1.250 [1.125, 1.375]")
    assert rows["replies that end by themselves"] == ("50.0 % [40.0, 60.0]", "90.0 % [80.0, 100.0]")
    assert "| What is a hare? | A bird. | A \\| mammal. |" in body
    assert "Helpful to good questions, probing to poor logic, blunt to wrong facts." in body
    assert "as `sft-99` had taught it" in body and "└→ run-1234" in body
    assert f"| command | {card.LOST} |" in body  # there is no tracking store
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", body, re.DOTALL)[1])
    assert settings["adapter"]["r"] == 16 and settings["method"]["name"] == "sft"
    assert said_by(text, out, monkeypatch) == generate_texts(model, tokenizer, ASKED[:1])[0].text


@pytest.mark.parametrize("value", ["dataset.loss_roles=user", "dataset.format=text"])
def test_a_user_speaks_first_and_a_text_goes_on(tmp_path, tokenizer, monkeypatch, value):
    cfg = config(tmp_path, stored(tmp_path, tokenizer), "adapter.kind=none", value)
    run, model = finished(tmp_path, cfg), language_model("qwen2", seed=5, vocab_size=len(tokenizer))
    save_language_model(cfg, model, tokenizer, run / "model")
    out = export(run, "--dtype", "float32")
    opening = "<|im_start|>user\n" if "user" in value else "What is a hare?"
    wanted = generate_texts(model, tokenizer, [[{"role": "text", "content": opening}]])[0].text
    assert said_by((out / "README.md").read_text(), out, monkeypatch) == wanted


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "bert"])
def test_a_reward_model_scores_by_the_card_s_code_as_it_does_here(tmp_path, tokenizer, monkeypatch, family):
    decoder, tokenizer = family != "bert", copy.deepcopy(tokenizer)
    if family == "gpt2":  # as GPT-2's own tokenizer: it fills rows with the token that ends a reply
        tokenizer.pad_token = tokenizer.eos_token
    network = classifier(family, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    cfg = config(tmp_path, "tiny", "adapter.kind=none", f"model.decoder={decoder}", "method.name=reward")
    run = finished(tmp_path, cfg)
    (run / "reward_report.md").write_text("# run-1234\n\n| measure | baseline | model |\n")
    network.save_pretrained(run / "model")
    tokenizer.save_pretrained(run / "model")
    ScoreNormalizer(0.25, 2.0).save(run / "model")
    (run / "model" / "sanity.json").write_text("{}")
    out = export(run, "--dtype", "float32")
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    wanted = 0.25 + 2 * predict_scores(network, tokenizer, 64, [(asked, "Paris.")])[0]
    assert float(said_by((out / "README.md").read_text(), out, monkeypatch)) == pytest.approx(wanted, abs=1e-5)
    assert (out / "sanity.json").exists() and ScoreNormalizer.load(out) == ScoreNormalizer(0.25, 2.0)


def test_a_base_and_data_of_the_hub_stand_in_the_metadata(tmp_path, monkeypatch):
    cfg = config(tmp_path, "Qwen/Qwen2.5-0.5B", "dataset.path=org/data")
    assert card.card_metadata(cfg)["base_model"] == "Qwen/Qwen2.5-0.5B" and card.card_metadata(cfg)["datasets"] == [
        "org/data"
    ]
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# local\n")
    cfg = config(tmp_path, str(tmp_path / "local"), "dataset.path=rows.jsonl")
    assert card.card_metadata(cfg)["license"] == "apache-2.0" and not {"base_model", "datasets"} & set(
        card.card_metadata(cfg)
    )


def test_a_run_of_train_py(tmp_path, capsys):
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
    assert plain(out).dtype == torch.bfloat16
