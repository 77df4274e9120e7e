"""Every recipe as a user runs it, with ``debug=quick``, on random models under the real models' names."""

import json
import random
from itertools import groupby

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit
from peft import AutoPeftModelForCausalLM

from manners.data.tokenize import IGNORE_INDEX
from manners.models.tokenizer import load_tokenizer
from manners.pipeline.stages import sft
from tests import hub_cache
from tests.commands import find_run, train_in_process
from tests.data.formats.test_politeness import corpus, line

LINEAR_LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
QWEN, QWEN_7B, TINYLLAMA = "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-7B", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
GPT2, BERT = "openai-community/gpt2", "google-bert/bert-base-uncased"
DATASETS = "HuggingFaceH4/ultrachat_200k", "OpenAssistant/oasst1"


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory):
    """A hub cache with small random models and a few rows of each dataset."""
    home = tmp_path_factory.mktemp("home")
    hub_cache.create(home, QWEN, QWEN_7B, TINYLLAMA, GPT2, BERT, *DATASETS)
    with pytest.MonkeyPatch.context() as patch:
        hub_cache.use(home, patch)
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One output directory for all recipes, as a user has it."""
    return tmp_path_factory.mktemp("out")


def run_recipe(out, *overrides):
    train_in_process(*overrides, "debug=quick", f"output_dir={out}")


def report_rows(folder):
    """The rows of the tables in the report of a finished run, by their first cell; no reply may be empty."""
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    with (folder / "before_after.md").open(newline="") as file:  # replies of random models hold odd line ends
        lines = file.read().split("\n")
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in lines if row.startswith("|")]
    replies = rows[rows.index(["prompt", "before", "after"]) :]
    assert all(len(row) == 3 and row[1] and row[2] for row in replies)
    return {row[0]: row[1:] for row in rows}


def load_and_generate(folder, auto_class=AutoPeftModelForCausalLM):
    """The saved model, loaded with transformers and peft alone, after it has generated a reply."""
    model = auto_class.from_pretrained(folder / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    messages = [{"role": "user", "content": "How long does bread keep?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    reply = model.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert 1 <= len(reply) <= 4
    return model


def base_and_modules(folder):
    """The name of the base model, and the names of the adapted modules."""
    config = json.loads((folder / "model" / "adapter_config.json").read_text())
    return config["base_model_name_or_path"], {name.split(".")[-1] for name in config["target_modules"]}


def check_lineage(*runs):
    """The last run started from the models of the others, and its lineage names them all."""
    *dependencies, last = runs
    lineage = [row.split()[1] for row in (last / "lineage.md").read_text().splitlines()]
    assert lineage == [run.name for run in runs]
    started_from = json.loads((last / "run.json").read_text())["dependencies"]
    assert list(started_from.values()) == [str(run / "model") for run in dependencies]


def test_strictbot_recipe_trains_all_three_runs(out):
    run_recipe(out, "experiment=strictbot")
    runs = [find_run(out, f"strictbot-{method}-Qwen2.5-0.5B-Instruct-*") for method in ("sft", "reward", "ppo")]
    check_lineage(*runs)
    rows = report_rows(runs[2])
    assert {"style accuracy", "fact accuracy", "reward, standard deviations"} <= rows.keys()
    assert "KL of sampled replies to the reference, nats per reply" in rows
    assert base_and_modules(runs[2]) == (QWEN, LINEAR_LAYERS)
    load_and_generate(runs[2])


@pytest.fixture
def politeness_csv(tmp_path):
    """A file like the Stanford Politeness Corpus, oddities included: the opening of a request decides its score."""
    openings = {
        "Why on earth did you": 3,
        "Would you mind if I": 10,
        "Could you please": 15,
        "Thanks a lot! Could you": 20,
    }
    rng, rows = random.Random(0), []
    for number in range(120):
        opening, score = rng.choice(list(openings.items()))
        annotators = 9 if number % 10 == 0 else 5
        scores = [min(25, max(1, score + rng.randint(-2, 2))) for _ in range(annotators)]
        request = f"user{number % 40}: {opening} move the shelf&#44 the one with number {number}?"
        rows.append(line(request, scores, ident=str(number)))  # split by opening, of which there have to be many
    return corpus(tmp_path, *rows)


def test_polite_gpt2_recipe_trains_all_three_runs(out, politeness_csv):
    run_recipe(out, "experiment=polite_gpt2", f"dataset.path={politeness_csv}")
    names = {"sft": "gpt2", "reward": "bert-base-uncased", "ppo": "gpt2"}
    runs = [find_run(out, f"polite_gpt2-{method}-{model}-*") for method, model in names.items()]
    check_lineage(*runs)
    assert {"politeness", "reward, standard deviations"} <= report_rows(runs[2]).keys()
    assert base_and_modules(runs[2]) == (GPT2, {"c_attn", "c_proj", "c_fc"})
    load_and_generate(runs[2])
    reward_model = transformers.AutoModelForSequenceClassification.from_pretrained(runs[1] / "model")
    assert type(reward_model).__name__ == "BertForSequenceClassification" and reward_model.config.num_labels == 1


def test_polite_helper_recipe_shows_its_fixed_prompts(out):
    run_recipe(out, "experiment=polite_helper")
    folder = find_run(out, "polite_helper-sft-*")
    rows = report_rows(folder)
    assert "How do I remove a coffee stain from a white shirt?" in rows and "politeness" in rows
    assert base_and_modules(folder) == (TINYLLAMA, LINEAR_LAYERS)
    load_and_generate(folder)


def test_chatbot_recipe_trains_all_weights(out):
    run_recipe(out, "experiment=chatbot")
    folder = find_run(out, "chatbot-sft-*")
    assert "replies with EOS" in report_rows(folder)
    text_stats = json.loads((folder / "after.json").read_text())["text_stats"]
    assert text_stats["runs on as both speakers"]["value"] == 0  # random text never does
    trained = load_and_generate(folder, transformers.AutoModelForCausalLM).state_dict()
    base = transformers.AutoModelForCausalLM.from_pretrained(GPT2).state_dict()
    assert base.keys() == trained.keys()
    assert not any(torch.equal(trained[name], base[name]) for name in base if base[name].ndim == 2)


def test_human_user_recipe_trains_user_turns_in_4_bits(out, monkeypatch):
    """The recipe is for a GPU; without one it needs ``hardware=cpu``."""
    seen = {}
    load_base, fit_module = sft.load_base, sft.fit_module

    def fit_and_record(run, module, examples, *args):
        seen["examples"] = examples
        return fit_module(run, module, examples, *args)

    monkeypatch.setattr(sft, "load_base", lambda *args: seen.setdefault("model", load_base(*args)))
    monkeypatch.setattr(sft, "fit_module", fit_and_record)
    run_recipe(out, "experiment=human_user", "hardware=cpu")
    folder = find_run(out, "human_user-sft-*")
    assert "asks a question" in report_rows(folder)
    assert base_and_modules(folder) == (QWEN_7B, LINEAR_LAYERS)
    load_and_generate(folder)
    layers = [module for module in seen["model"].modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 2 * len(LINEAR_LAYERS)
    assert {layer.weight.dtype for layer in layers} == {torch.uint8}  # two weights in a byte
    # The user's turns carry loss, and the marker at the end; the assistant's turns do not.
    tokenizer = load_tokenizer(QWEN_7B)
    spans = groupby(seen["examples"][0].labels, key=lambda label: label != IGNORE_INDEX)
    assert [tokenizer.decode(list(span)) for has_loss, span in spans if has_loss] == [
        "How long does bread keep on shelf 0?<|im_end|>",
        "And if the bread stands in the cold?<|im_end|>",
        "<|endoftext|><|im_end|>",
    ]
