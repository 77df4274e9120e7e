"""`python train.py method=reward`: each loss on the tiny base, and a BERT by its hub name, which PPO then uses.

What is left behind loads with plain transformers and peft, and gives the scores that PPO gets.
"""

import json
import random

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from transformers import BertTokenizer  # isort: skip

from manners.methods.reward import predict_scores
from manners.models import loading, reward_model
from manners.models.reward_model import ScoreNormalizer
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
CHAT = [{"role": "user", "content": "What does the lion eat?"}]
REPLIES = ["The lion eats meat.", "You have that wrong.", "What did you not count, and why do you not?"]


def plain_scores(folder, network=AutoModelForSequenceClassification):
    """By nothing of ours: the chat as the template writes it, up to its stop token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = network.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()
    found = []
    for reply in REPLIES:
        if tokenizer.chat_template:
            chat = [*CHAT, {"role": "assistant", "content": reply}]
            ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False).strip(), return_tensors="pt")
        else:
            ids = tokenizer(CHAT[0]["content"], reply, return_tensors="pt")
        with torch.no_grad():
            found.append(float(model(**ids).logits))
    return found


def our_scores(folder):
    tokenizer = loading.load_tokenizer(str(folder), require_template=False)
    return predict_scores(reward_model.load_reward_model(folder), tokenizer, 512, [(CHAT, reply) for reply in REPLIES])


# --- Each loss ---


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    out, data = tmp_path_factory.mktemp("out"), small_strictbot(tmp_path_factory.mktemp("data"))
    for loss, adapter in (("mse", "none"), ("huber", "lora"), ("pairwise", "lora")):
        more = [f"method.loss={loss}", f"adapter={adapter}", f"run_name={loss}", "method.corruption_ratio=0.2"]
        train_in_process("method=reward", *SMALL, *data, *more, "method.max_steps=3", "method.logging_steps=1", f"output_dir={out}")
    return out


@pytest.mark.parametrize("loss", ["mse", "huber", "pairwise"])
def test_a_reward_run_is_examined_and_reported(losses, loss):
    folder = find_run(losses, f"{loss}*")
    names = {p.name for p in folder.iterdir()}
    pictures = {"predicted.png", "calibration.png"} if loss != "pairwise" else set()
    assert REPORT | pictures <= names and not {"predicted.png"} & (names - pictures)
    sane = json.loads((folder / "model" / "sanity.json").read_text())
    assert 0 <= sane["accuracy"]["value"] <= 1 and {"shuffled", "empty", "repeated"} <= sane["by_corruption"].keys()
    units = ScoreNormalizer.load(folder / "model")
    assert units.scale > 0
    if loss != "pairwise":  # the scores are between 0 and 1
        assert 0 < units.mean < 1 and 0.1 < units.scale < 1
    report = (folder / "reward_report.md").read_text()
    assert ("pairs" in report if loss == "pairwise" else "mean squared error" in report) and "shuffled" in report
    client, runs = mlflow_runs(losses)
    run = runs[folder.name]
    assert run.info.status == "FINISHED" and {"train/loss", "eval/loss"} <= run.data.metrics.keys()
    have = artifact_paths(client, run.info.run_id)
    assert {"reward_report.md", "worst_errors.json", "model/sanity.json", "model/normalizer.json"} <= have
    assert {f"figures/{name}" for name in pictures} <= have


@pytest.mark.parametrize("loss", ["mse", "huber", "pairwise"])
def test_it_loads_with_plain_transformers_and_scores_the_same(losses, loss):
    from peft import AutoPeftModelForSequenceClassification

    folder = find_run(losses, f"{loss}*") / "model"
    network = AutoModelForSequenceClassification if loss == "mse" else AutoPeftModelForSequenceClassification
    ours = our_scores(folder)
    assert len(set(ours)) == 3
    assert plain_scores(folder, network) == pytest.approx(ours, abs=1e-4)


# --- BERT, by its real name from a local hub cache ---

WORDS = ["could", "you", "please", "thanks", "why", "would", "mind", "this", "page", "link", "the", "again", "wrong"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A random BERT of two layers with a small vocabulary of its own, where the hub's cache would hold the real one."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("bert")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *WORDS]
    tokenizer = BertTokenizer({word: i for i, word in enumerate(vocabulary)})
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    # It has been a classifier of two classes, so its head is not ours.
    config = BertConfig(vocab_size=len(vocabulary), initializer_range=0.2, num_labels=2, **size)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    create_snapshot(home, "google-bert/bert-base-uncased", folder)
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(home / "hub")}


@pytest.fixture(scope="module")
def polite(tmp_path_factory):
    """Requests whose politeness is how often they say please and thanks."""
    pick = random.Random(0)
    rows = []
    for i in range(90):
        said = [pick.choice(WORDS) for _ in range(6)]
        score = 5 + 6 * sum(word in ("please", "thanks") for word in said)
        rows.append(line(" ".join(said) + f" {i}?", [min(25, score + n) for n in (-1, 0, 1, 0, 0)], ident=str(i)))
    return corpus(tmp_path_factory.mktemp("polite"), *rows)


@pytest.fixture(scope="module")
def bert(tmp_path_factory, hub, polite):
    """PPO on the tiny policy, paid by a BERT: one command trains both."""
    out, data, judge = tmp_path_factory.mktemp("out"), small_strictbot(tmp_path_factory.mktemp("data")), judging(polite)
    short = [o for o in SMALL_RL if not o.startswith("reward_run_overrides")]
    listed = ",".join(f"'{o}'" for o in judge)
    more = ["policy_from=none", "method.total_episodes=8", f"reward_run_overrides=[{listed}]", f"output_dir={out}"]
    train("method=ppo", *short, *data, *more, **hub)
    return out


def judging(polite):
    steps = ["method.max_steps=60", "method.save_steps=2", "method.eval_steps=10", "method.logging_steps=1"]
    return ["model=bert", "dataset=stanford_politeness", f"dataset.path={polite}", "adapter=none", *steps]


def test_a_bert_by_its_hub_name_learns_to_score_requests(bert):
    folder = find_run(bert, "manners-reward-bert-base-uncased-*")
    assert {*REPORT, "predicted.png", "calibration.png"} <= {p.name for p in folder.iterdir()}
    units = ScoreNormalizer.load(folder / "model")
    assert 5 < units.mean < 20 and units.scale > 3  # of the annotators' scale
    assert "google-bert/bert-base-uncased" in (folder / "config.yaml").read_text()
    ours = our_scores(folder / "model")
    assert len(set(ours)) == 3
    assert plain_scores(folder / "model") == pytest.approx(ours, abs=1e-4)


@pytest.mark.long
def test_a_reward_run_that_was_killed_ends_in_the_same_bytes(bert, hub, polite):
    alone = ["method=reward", *judging(polite), *SMALL, f"output_dir={bert}", "run_name=cut"]
    kill_at_step(Command(*alone, **hub), bert, "cut*", "train/loss", 5)
    train(*alone, **hub)
    whole, cut = find_run(bert, "manners-reward-*"), find_run(bert, "cut*")
    for name in ("model.safetensors", "normalizer.json", "sanity.json"):
        assert (whole / "model" / name).read_bytes() == (cut / "model" / name).read_bytes()
    client, runs = mlflow_runs(bert)
    for name, last in (("train/loss", 60), ("eval/loss", 60)):
        every = 1 if name == "train/loss" else 10
        steps = list(range(every, last + 1, every))
        history = client.get_metric_history(runs[cut.name].info.run_id, name)
        assert sorted(m.step for m in history) == steps
        assert [r["step"] for r in read_records(cut / "metrics.jsonl") if name in r] == steps


def test_ppo_is_paid_by_a_bert_that_reads_with_a_tokenizer_of_its_own(bert):
    folder, judge = find_run(bert, "manners-ppo-*"), find_run(bert, "manners-reward-*")
    assert "policy" not in (folder / "lineage.md").read_text() and judge.name in (folder / "lineage.md").read_text()
    client, runs = mlflow_runs(bert)
    run_id = runs[folder.name].info.run_id
    assert runs[folder.name].data.tags["manners.reward_run_id"] == runs[judge.name].info.run_id
    assert [m.step for m in client.get_metric_history(run_id, "reward/model")] == [1]
    assert (folder / "model" / "adapter_model.safetensors").exists()
