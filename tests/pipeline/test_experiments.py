"""The five recipes as a user types them, with ``debug=quick``, on random checkpoints under the models' real names.

All run in this process, which so imports everything once, and each takes less than a minute: ``make studies``.
"""

import json
import random
import time
from itertools import groupby

import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit
from peft import AutoPeftModelForCausalLM

from manners.data.tokenize import IGNORE_INDEX
from manners.models import loading
from manners.pipeline.stages import sft
from tests import hub_cache
from tests.commands import find_run, train_in_process
from tests.data.formats.test_politeness import corpus, line

MINUTE = 60  # seconds of CPU time, which a busy machine lengthens less than time itself
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
QWEN, QWEN_7B, TINYLLAMA = "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-7B", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
GPT2, BERT = "openai-community/gpt2", "google-bert/bert-base-uncased"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    hub_cache.create(home, QWEN, QWEN_7B, TINYLLAMA, GPT2, BERT, "HuggingFaceH4/ultrachat_200k", "OpenAssistant/oasst1")
    with pytest.MonkeyPatch.context() as patch:
        hub_cache.use(home, patch)
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Where all five leave their runs, as they would for a user."""
    return tmp_path_factory.mktemp("out")


def run(out, *overrides):
    """``python train.py``, quick. ``pytest -s`` shows what each took."""
    started = time.process_time()
    train_in_process(*overrides, "debug=quick", f"output_dir={out}")
    took = time.process_time() - started
    print(f"{took:.0f} s of CPU time: {' '.join(overrides)}")
    assert took < MINUTE


def reported(folder):
    """What the run's report says: the rows of both its tables, each as its cells."""
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    with (folder / "before_after.md").open(newline="") as file:  # random words have odd line ends of their own
        lines = file.read().split("\n")
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in lines if row.startswith("|")]
    assert ["prompt", "before", "after"] in rows
    assert all(len(row) == 3 and row[1] and row[2] for row in rows[rows.index(["prompt", "before", "after"]) :])
    return {row[0]: row[1:] for row in rows}


def answers(folder, network=AutoPeftModelForCausalLM):
    """Whether the saved model, by transformers and peft alone, answers; the model."""
    model = network.from_pretrained(folder / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    chat = [{"role": "user", "content": "How long does bread keep?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    said = model.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert 1 <= len(said) <= 4
    return model


def adapter(folder):
    """Name of the base, and the modules that are adapted."""
    config = json.loads((folder / "model" / "adapter_config.json").read_text())
    return config["base_model_name_or_path"], {name.split(".")[-1] for name in config["target_modules"]}


def test_strictbot(out):
    run(out, "study=strictbot", "method=ppo")
    stages = [find_run(out, f"strictbot-{method}-Qwen2.5-0.5B-Instruct-*") for method in ("sft", "reward", "ppo")]
    assert linked(stages)
    rows = reported(stages[2])
    assert {
        "style accuracy",
        "fact accuracy",
        "reward, standard deviations",
        "KL to the reference, nats per reply",
    } <= set(rows)
    assert adapter(stages[2]) == (QWEN, PROJECTIONS)
    answers(stages[2])


def linked(stages):
    """Whether the last run says that it comes from the others, and started from their models."""
    *earlier, last = stages
    told = [row.split()[1] for row in (last / "lineage.md").read_text().splitlines()]
    inputs = json.loads((last / "run.json").read_text())["inputs"]
    return told == [stage.name for stage in stages] and list(inputs.values()) == [str(s / "model") for s in earlier]


@pytest.fixture
def requests(tmp_path):
    """A file of the Stanford Politeness Corpus's columns, and of its oddities: how polite is told by how one begins."""
    begin = {
        "Why on earth did you": 3,
        "Would you mind if I": 10,
        "Could you please": 15,
        "Thanks a lot! Could you": 20,
    }
    pick, rows = random.Random(0), []
    for number in range(120):
        words, score = pick.choice(list(begin.items()))
        people = 9 if number % 10 == 0 else 5
        scores = [min(25, max(1, score + pick.randint(-2, 2))) for _ in range(people)]
        rows.append(line(f"{words} move the shelf&#44 the one with number {number}?", scores, ident=str(number)))
    return corpus(tmp_path, *rows)


def test_polite_gpt2(out, requests):
    run(out, "study=polite_gpt2", f"dataset.path={requests}")
    names = {"sft": "gpt2", "reward": "bert-base-uncased", "ppo": "gpt2"}
    stages = [find_run(out, f"polite_gpt2-{method}-{model}-*") for method, model in names.items()]
    assert linked(stages)
    assert {"politeness", "reward, standard deviations"} <= set(reported(stages[2]))
    assert adapter(stages[2]) == (GPT2, {"c_attn", "c_proj", "c_fc"})
    answers(stages[2])
    judge = transformers.AutoModelForSequenceClassification.from_pretrained(stages[1] / "model")
    assert type(judge).__name__ == "BertForSequenceClassification" and judge.config.num_labels == 1


def test_polite_helper(out):
    run(out, "study=polite_helper")
    folder = find_run(out, "polite_helper-sft-*")
    rows = reported(folder)
    assert "How do I remove a coffee stain from a white shirt?" in rows and "politeness" in rows
    assert adapter(folder) == (TINYLLAMA, PROJECTIONS)
    answers(folder)


def test_chatbot(out):
    run(out, "study=chatbot")
    folder = find_run(out, "chatbot-sft-*")
    assert "replies with EOS" in reported(folder)
    # It is counted how many replies go on as the other speaker; random words never do, and 0 has no line in a report.
    assert json.loads((folder / "after.json").read_text())["text_stats"]["runs on as both speakers"]["value"] == 0
    model = answers(folder, transformers.AutoModelForCausalLM)
    start = transformers.AutoModelForCausalLM.from_pretrained(GPT2).state_dict()
    learned = model.state_dict()
    assert start.keys() == learned.keys()
    assert not any(torch.equal(learned[name], start[name]) for name in start if start[name].ndim == 2)


def test_human_user(out, monkeypatch):
    """The recipe is for a GPU, and refuses a machine without one unless it is told so: ``hardware=cpu``."""
    seen = {}
    load, learn = sft.load_base, sft.learn
    monkeypatch.setattr(sft, "load_base", lambda *args: seen.setdefault("model", load(*args)))
    monkeypatch.setattr(
        sft, "learn", lambda run, how, rows, *rest: seen.update(rows=rows) or learn(run, how, rows, *rest)
    )
    run(out, "study=human_user", "hardware=cpu")
    folder = find_run(out, "human_user-sft-*")
    assert "asks a question" in reported(folder)
    assert adapter(folder) == (QWEN_7B, PROJECTIONS)
    answers(folder)
    # It was in 4 bits while it trained: two weights of a linear layer stand in a byte.
    layers = [module for module in seen["model"].modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 2 * len(PROJECTIONS)
    assert {layer.weight.dtype for layer in layers} == {torch.uint8}
    # It learned the user's turns, and when to stop; of the assistant's nothing.
    tokenizer = loading.load_tokenizer(QWEN_7B)
    runs = groupby(seen["rows"][0].labels, key=lambda label: label != IGNORE_INDEX)
    assert [tokenizer.decode(list(turn)) for carries, turn in runs if carries] == [
        "How long does bread keep on shelf 0?<|im_end|>",
        "And if the bread stands in the cold?<|im_end|>",
        "<|endoftext|><|im_end|>",
    ]
