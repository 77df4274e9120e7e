"""`python evaluate.py`: runs and their base on the same prompts."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn.functional import cross_entropy

from manners.config.compose import compose, register
from manners.data.loading import load_splits
from manners.data.tokenize import IGNORE_INDEX, tokenize
from manners.data.types import Conversation
from manners.evaluation.generate import generate_texts
from manners.models.loading import load_model
from manners.models.tokenizer import load_tokenizer
from manners.pipeline import evaluate, model_ref, run
from manners.runtime import run_dir
from tests.commands import ROOT, SMALL_RL, artifact_paths, find_run, mlflow_runs, small_strictbot, train_in_process
from tests.data.files import config, write


def test_models_of_one_name_are_numbered():
    refs = [model_ref.ModelRef(name, path) for name, path in (("m", "a/m"), ("m", "b/m"), ("n", "n"))]
    assert [ref.name for ref in evaluate.with_own_names(refs)] == ["m", "m #2", "n"]


def test_rows_that_a_model_was_trained_on_are_named(tmp_path, capsys):
    """As where a run held out other rows of the same file than the run whose data are measured."""
    path = write(tmp_path, *[{"prompt": f"{i}?", "completion": "x"} for i in range(40)])
    few, many = (config(path, test_share=share, validation_share=0.0) for share in (0.05, 0.5))
    evaluator = SimpleNamespace(dataset=many, rows=load_splits(many).test)
    method = OmegaConf.create({"sample_type": "conversation"})
    own, other = (
        SimpleNamespace(name=n, config=SimpleNamespace(dataset=d, method=method))
        for n, d in (("own", many), ("few", few))
    )
    evaluate.Evaluator.warn_of_training_rows(evaluator, [own, other, SimpleNamespace(name="base", config=None)])
    trained = {row.messages[0]["content"] for row in load_splits(few).train}
    count = sum(row.messages[0]["content"] in trained for row in evaluator.rows)
    said = " ".join(capsys.readouterr().out.split())
    expected = f"few was trained on the prompts of {count} of the {len(evaluator.rows)} held-"
    assert count > 9 and said.startswith(expected)
    # A run that starts from such a policy says so, too, where the user named it.
    for source, is_said in (("few", True), ("", False)):
        need = SimpleNamespace(role="policy", explicit_source=source)
        spec = SimpleNamespace(dependencies=[need], cfg=SimpleNamespace(dataset=many))
        run.warn_of_training_rows(spec, load_splits(many), {"policy": other})
        said = " ".join(capsys.readouterr().out.split())
        assert said.startswith(expected) if is_said else not said


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The output directory of PPO, its SFT policy and its reward model."""
    out = tmp_path_factory.mktemp("out")
    overrides = ["policy_run_overrides=['method.max_steps=20']", "method.total_episodes=8", f"output_dir={out}"]
    overrides += ["dataset.prompted_baseline='Be blunt.'"]
    train_in_process("method=ppo", *SMALL_RL, *small_strictbot(out), *overrides)
    return out


def test_data_that_were_changed_since_a_run_are_named(out, capsys):
    folder = find_run(out, "manners-sft-*")
    trained = run_dir.artifact_of(folder, run_dir.load_state(folder))
    refs = [model_ref.ModelRef("sft", str(trained.model_dir), trained), model_ref.ModelRef("base", "tiny")]
    evaluate.warn_of_changed_data(refs)
    assert not capsys.readouterr().out
    file = Path(trained.config.dataset.path)
    rows = file.read_text()
    file.write_text(rows[: rows[:-1].rindex("\n") + 1])  # without the last row
    evaluate.warn_of_changed_data(refs)
    file.write_text(rows)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"sft was trained before dataset.path={trained.config.dataset.path} was changed")


@pytest.fixture(scope="module")
def report(out):
    """SFT and PPO with the base, the reward model, a function and conversations: the report and the runs' names."""
    sft, ppo = find_run(out, "manners-sft-*").name, find_run(out, "manners-ppo-*").name
    register()
    overrides = [f"run=[{sft},{ppo}]", f"output_dir={out}", "evaluation.test_prompts=4"]
    overrides += [
        "evaluation.max_new_tokens=12",
        "reward_from=auto",
        "+rewards.brevity={_target_: manners.rewards.functions.brevity}",
    ]
    cfg = compose("evaluate", [*overrides, "turns=4", "chats=3"])
    return evaluate.evaluate_models(cfg), sft, ppo


def test_comparison_has_the_base_once_and_every_metric(report):
    folder, sft, ppo = report
    comparison = (folder / "comparison.md").read_text()
    assert f"| metric | tiny (before) | tiny (prompted) | {sft} | {ppo} | in the data |" in comparison
    for name in ("style accuracy", "fact accuracy", "replies with EOS"):
        assert re.search(rf"^\| {name} \|( \d+\.\d % \[[^|]+\|){{4}}", comparison, re.MULTILINE), name
    for name in ("style accuracy poor logic", "style accuracy rows: generated"):
        assert re.search(rf"^\| {name} \|( \d+\.\d % \[[^|]+\|){{4}}", comparison, re.MULTILINE), name
    for name in ("reward model", "brevity", "words"):
        assert re.search(rf"^\| {name}[^|]*\|( -?\d+\.\d+ \[[^|]+\|){{4}}", comparison, re.MULTILINE), name
    assert re.search(r"^\| held-out loss[^|]*\| \d[^|]+\| *\|( \d[^|]+\|){2}", comparison, re.MULTILINE)  # not prompted


def test_held_out_loss_is_of_the_rows_that_are_answered(out):
    """Four of the eight test rows, by plain cross-entropy."""
    ppo = find_run(out, "manners-ppo-*")
    cfg = compose("evaluate", [f"run={ppo.name}", f"output_dir={out}"])
    loaded = model_ref.load_model_ref(model_ref.resolve_model(ppo.name, cfg), "cpu")
    rows = [json.loads(line) for line in (out / "few.jsonl").read_text().splitlines()]
    rows = [Conversation(row["messages"]) for row in rows if row["split"] == "test"][:4]
    losses = []
    for example in tokenize(rows, loaded.tokenizer, "assistant", 512):
        logits = loaded.model(torch.tensor([example.input_ids])).logits[0, :-1]
        labels = torch.tensor(example.labels[1:])
        losses.append(cross_entropy(logits, labels, reduction="none")[labels != IGNORE_INDEX])
    assert json.loads((ppo / "after.json").read_text())["loss"]["value"] == pytest.approx(
        torch.cat(losses).mean().item()
    )


@pytest.fixture(scope="module")
def best_of_report(out):
    ppo = find_run(out, "manners-ppo-*").name
    register()
    overrides = [f"run={ppo}", f"output_dir={out}", "base=false", "evaluation.max_new_tokens=12"]
    cfg = compose("evaluate", [*overrides, "evaluation.test_prompts=6", "reward_from=auto", "best_of=4"])
    return evaluate.evaluate_models(cfg), ppo


def test_best_of_keeps_the_sampled_reply_with_the_highest_score(best_of_report, out):
    folder, ppo = best_of_report
    records = [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]
    best = [r for r in records if r["model"] == f"{ppo} (best of 4)"]
    assert len(best) == 6
    cfg = compose("evaluate", [f"run={ppo}", f"output_dir={out}"])
    model = model_ref.load_model_ref(model_ref.resolve_model(ppo, cfg), "cpu")
    conversations = [r["messages"] for r in best for _ in range(4)]
    sampled = generate_texts(model.model, model.tokenizer, conversations, max_new_tokens=12, do_sample=True, seed=1)
    score = model_ref.load_scorer(
        model_ref.resolve_model(str(find_run(out, "manners-reward-*")), cfg, ("reward",)), "cpu"
    )
    for i, record in enumerate(best):
        texts = [r.text for r in sampled[4 * i : 4 * i + 4]]
        scores = score([(record["messages"], text) for text in texts])
        assert record["reply"] == texts[scores.index(max(scores))]


def test_best_of_prints_what_more_samples_gain(best_of_report):
    folder, ppo = best_of_report
    comparison = (folder / "comparison.md").read_text()
    rows = re.findall(
        r"^\| (\d+) \| (\d\.\d\d) \| (-?\d\.\d+) \[", comparison.partition(f"{ppo}: best of")[2], re.MULTILINE
    )
    assert [(n, kl) for n, kl, _ in rows] == [("1", "0.00"), ("2", "0.19"), ("4", "0.64")]
    saved = json.loads((folder / "numbers.json").read_text())[f"{ppo} (best of 4)"]["best_of_n"]
    assert [b["n"] for b in saved] == [1, 2, 4]
    rewards = [float(reward) for *_, reward in rows]
    assert rewards == pytest.approx([b["reward"]["value"] for b in saved], abs=1e-3)
    assert rewards == sorted(rewards)
    assert rewards[0] < rewards[-1]


def test_best_of_needs_a_reward_model():
    process = subprocess.run(
        [sys.executable, "evaluate.py", "best_of=4"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert process.stderr == "error: best_of=4 needs a reward model to choose by: reward_from=auto.\n"


def test_prompted_baseline_is_the_base_with_the_system_message(report):
    folder, *_ = report
    records = [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]
    prompted = [r for r in records if r["model"] == "tiny (prompted)"]
    assert len(prompted) == sum(r["model"] == "tiny (before)" for r in records)
    system = {"role": "system", "content": "Be blunt."}
    prompts = [[system, *r["messages"]] for r in prompted]
    expected = generate_texts(load_model("tiny"), load_tokenizer("tiny"), prompts, max_new_tokens=12)
    assert [r["reply"] for r in prompted] == [reply.text for reply in expected]


def test_metrics_have_the_names_and_values_of_the_run(report, out):
    """evaluate.py and the run itself read the same rows, and log alike what they measure."""
    folder, _, ppo = report
    _, runs = mlflow_runs(out)
    evaluated, run = runs[folder.name].data.metrics, runs[ppo].data.metrics
    names = {name.removeprefix(f"{ppo}/") for name in evaluated if name.startswith(f"{ppo}/")}
    assert {"eos_rate", "style_accuracy", "fact_accuracy", "loss", "distinct_2", "words"} <= names
    assert evaluated[f"{ppo}/loss"] == pytest.approx(run["after/loss"], abs=1e-3)


def test_replies_before_training_are_those_of_the_base(report):
    folder, _, ppo = report
    records = [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]
    before = [r for r in records if r["model"] == "tiny (before)"]
    conversations = [r["messages"] for r in before]
    expected = generate_texts(load_model("tiny"), load_tokenizer("tiny"), conversations, max_new_tokens=12)
    assert [r["reply"] for r in before] == [reply.text for reply in expected]
    assert [r["reply"] for r in before] != [r["reply"] for r in records if r["model"] == ppo]


def test_report_has_figures_and_an_mlflow_run(report, out):
    folder, _, ppo = report
    assert {"text_stats.png", "turns.png", "replies.md"} <= {p.name for p in folder.iterdir()}
    client, runs = mlflow_runs(out)
    run = runs[folder.name]
    assert {"comparison.json", "replies.json", "comparison.md"} <= artifact_paths(client, run.info.run_id)
    assert run.data.tags["manners.method"] == "evaluate"
    comparison = (folder / "comparison.md").read_text()
    row = re.search(r"^\| words \|.*\| (\d+\.\d+) \[[^|]*\| [^|]*\|$", comparison, re.MULTILINE)
    assert run.data.metrics[f"{ppo}/words"] == pytest.approx(float(row[1]), abs=5e-4)


def test_mistake_is_reported_before_torch_is_imported():
    command = [sys.executable, "-X", "importtime", str(ROOT / "evaluate.py"), "turns=-1"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode and "error: turns=-1 must be at least 0." in process.stderr
    assert " torch\n" not in process.stderr
