"""`python train.py method=reward`: each loss on the tiny base, and a BERT by its hub name, which PPO then uses.

The saved models load with plain transformers and peft, and give the same scores.
"""

import json
import random

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
)

from manners.methods.reward import predict_scores
from manners.models import reward_model
from manners.models.reward_model import ScoreNormalizer
from manners.models.tokenizer import load_tokenizer
from tests.commands import (
    SMALL,
    SMALL_RL,
    Command,
    artifact_paths,
    find_run,
    kill_at_step,
    mlflow_runs,
    read_records,
    small_strictbot,
    train,
    train_in_process,
)
from tests.data.formats.test_politeness import corpus, line
from tests.hub_cache import create_snapshot

REPORT = {"reward_report.md", "after.json", "learning_curve.png", "lineage.md", "model"}
MESSAGES = [{"role": "user", "content": "What does the lion eat?"}]
REPLIES = ["The lion eats meat.", "You have that wrong.", "What did you not count, and why do you not?"]


def plain_scores(folder, auto_class=AutoModelForSequenceClassification):
    """The scores without manners: the conversation as the chat template renders it, up to EOS."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = auto_class.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()
    scores = []
    for reply in REPLIES:
        if tokenizer.chat_template:
            messages = [*MESSAGES, {"role": "assistant", "content": reply}]
            ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False).strip(), return_tensors="pt")
        else:
            ids = tokenizer(MESSAGES[0]["content"], reply, return_tensors="pt")
        with torch.no_grad():
            scores.append(float(model(**ids).logits))
    return scores


def our_scores(folder):
    tokenizer = load_tokenizer(str(folder), require_template=False)
    model = reward_model.load_reward_model(folder)
    return predict_scores(model, tokenizer, 512, [(MESSAGES, reply) for reply in REPLIES])


# --- Each loss ---


@pytest.fixture(scope="module")
def loss_runs(tmp_path_factory):
    """The output directory of a run for each loss."""
    out, data = tmp_path_factory.mktemp("out"), small_strictbot(tmp_path_factory.mktemp("data"))
    for loss, adapter in (("mse", "none"), ("huber", "lora"), ("pairwise", "lora")):
        overrides = [f"method.loss={loss}", f"adapter={adapter}", f"run_name={loss}", "method.corruption_ratio=0.2"]
        overrides += ["method.max_steps=3", "method.logging_steps=1", f"output_dir={out}"]
        train_in_process("method=reward", *SMALL, *data, *overrides)
    return out


@pytest.mark.parametrize("loss", ["mse", "huber", "pairwise"])
def test_reward_run_checks_sanity_and_reports(loss_runs, loss):
    folder = find_run(loss_runs, f"{loss}*")
    names = {p.name for p in folder.iterdir()}
    figures = {"predicted.png", "calibration.png"} if loss != "pairwise" else set()
    assert REPORT | figures <= names and not {"predicted.png"} & (names - figures)
    sanity = json.loads((folder / "model" / "sanity.json").read_text())
    assert 0 <= sanity["accuracy"]["value"] <= 1 and {"shuffled", "empty", "repeated"} <= sanity["by_corruption"].keys()
    normalizer = ScoreNormalizer.load(folder / "model")
    assert normalizer.scale > 0
    if loss != "pairwise":  # the scores are between 0 and 1
        assert 0 < normalizer.mean < 1 and 0.1 < normalizer.scale < 1
    report = (folder / "reward_report.md").read_text()
    assert ("pairs" in report if loss == "pairwise" else "mean squared error" in report) and "shuffled" in report
    client, runs = mlflow_runs(loss_runs)
    run = runs[folder.name]
    assert run.info.status == "FINISHED" and {"train/loss", "eval/loss"} <= run.data.metrics.keys()
    paths = artifact_paths(client, run.info.run_id)
    assert {"reward_report.md", "worst_errors.json", "model/sanity.json", "model/normalizer.json"} <= paths
    assert {f"figures/{name}" for name in figures} <= paths


@pytest.mark.parametrize("loss", ["mse", "huber", "pairwise"])
def test_saved_reward_model_scores_alike_without_manners(loss_runs, loss):
    folder = find_run(loss_runs, f"{loss}*") / "model"
    auto_class = AutoModelForSequenceClassification if loss == "mse" else AutoPeftModelForSequenceClassification
    ours = our_scores(folder)
    assert len(set(ours)) == 3
    assert plain_scores(folder, auto_class) == pytest.approx(ours, abs=1e-4)


# --- BERT, by its name on the hub from a local cache ---

WORDS = ["could", "you", "please", "thanks", "why", "would", "mind", "this", "page", "link", "the", "again", "wrong"]


@pytest.fixture(scope="module")
def hub_environment(tmp_path_factory):
    """Environment variables of a hub cache with a random BERT of two layers under the real one's name."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("bert")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *WORDS]
    tokenizer = BertTokenizer({word: i for i, word in enumerate(vocabulary)})
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    # With the head of a classifier of two classes, which cannot be used.
    config = BertConfig(vocab_size=len(vocabulary), initializer_range=0.2, num_labels=2, **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    create_snapshot(home, "google-bert/bert-base-uncased", folder)
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(home / "hub")}


@pytest.fixture(scope="module")
def politeness_csv(tmp_path_factory):
    """A corpus of requests whose politeness is the number of "please" and "thanks" in them."""
    rng = random.Random(0)
    rows = []
    for i in range(90):
        words = [rng.choice(WORDS) for _ in range(6)]
        score = 5 + 6 * sum(word in ("please", "thanks") for word in words)
        rows.append(line(" ".join(words) + f" {i}?", [min(25, score + n) for n in (-1, 0, 1, 0, 0)], ident=str(i)))
    return corpus(tmp_path_factory.mktemp("polite"), *rows)


@pytest.fixture(scope="module")
def bert_runs(tmp_path_factory, hub_environment, politeness_csv):
    """The output directory of PPO on the tiny model with a BERT as its reward model: one command trains both."""
    out, data = tmp_path_factory.mktemp("out"), small_strictbot(tmp_path_factory.mktemp("data"))
    small_rl = [o for o in SMALL_RL if not o.startswith("reward_run_overrides")]
    reward_overrides = ",".join(f"'{o}'" for o in bert_overrides(politeness_csv))
    overrides = ["policy_from=none", "method.total_episodes=8", f"reward_run_overrides=[{reward_overrides}]"]
    train("method=ppo", *small_rl, *data, *overrides, f"output_dir={out}", **hub_environment)
    return out


def bert_overrides(politeness_csv):
    steps = ["method.max_steps=60", "method.save_steps=2", "method.eval_steps=10", "method.logging_steps=1"]
    return ["model=bert", "dataset=stanford_politeness", f"dataset.path={politeness_csv}", "adapter=none", *steps]


def test_bert_trains_on_the_politeness_corpus(bert_runs):
    folder = find_run(bert_runs, "manners-reward-bert-base-uncased-*")
    assert {*REPORT, "predicted.png", "calibration.png"} <= {p.name for p in folder.iterdir()}
    normalizer = ScoreNormalizer.load(folder / "model")
    assert 5 < normalizer.mean < 20 and normalizer.scale > 3  # the annotators' scale
    assert "google-bert/bert-base-uncased" in (folder / "config.yaml").read_text()
    ours = our_scores(folder / "model")
    assert len(set(ours)) == 3
    assert plain_scores(folder / "model") == pytest.approx(ours, abs=1e-4)


@pytest.mark.long
def test_killed_reward_run_resumes_bit_equal(bert_runs, hub_environment, politeness_csv):
    command = ["method=reward", *bert_overrides(politeness_csv), *SMALL, f"output_dir={bert_runs}", "run_name=resumed"]
    kill_at_step(Command(*command, **hub_environment), bert_runs, "resumed*", "train/loss", 5)
    train(*command, **hub_environment)
    full, resumed = find_run(bert_runs, "manners-reward-*"), find_run(bert_runs, "resumed*")
    for name in ("model.safetensors", "normalizer.json", "sanity.json"):
        assert (full / "model" / name).read_bytes() == (resumed / "model" / name).read_bytes()
    client, runs = mlflow_runs(bert_runs)
    for name, interval in (("train/loss", 1), ("eval/loss", 10)):
        steps = list(range(interval, 61, interval))
        history = client.get_metric_history(runs[resumed.name].info.run_id, name)
        assert sorted(m.step for m in history) == steps
        assert [r["step"] for r in read_records(resumed / "metrics.jsonl") if name in r] == steps


def test_ppo_uses_a_bert_with_its_own_tokenizer(bert_runs):
    folder, reward = find_run(bert_runs, "manners-ppo-*"), find_run(bert_runs, "manners-reward-*")
    lineage = (folder / "lineage.md").read_text()
    assert "policy" not in lineage and reward.name in lineage
    client, runs = mlflow_runs(bert_runs)
    run_id = runs[folder.name].info.run_id
    assert runs[folder.name].data.tags["manners.reward_run_id"] == runs[reward.name].info.run_id
    assert [m.step for m in client.get_metric_history(run_id, "reward/model")] == [1]
    assert (folder / "model" / "adapter_model.safetensors").exists()
