"""`evaluate.py benchmarks=`: mistakes before any model is loaded, and by which template each model is asked."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from manners.config import validate
from manners.config.compose import compose, hydra_context, register
from manners.errors import MannersError
from manners.evaluation.metrics import lm_eval
from manners.evaluation.metrics.lm_eval_tasks import Benchmarks
from manners.evaluation.stats import Estimate
from manners.models.pretrained import resolve_name
from manners.pipeline import benchmarks, evaluate
from tests.commands import ROOT, SMALL, small_strictbot, train_in_process

QUESTIONS = ["Which continent is Sweden in?", "What is the capital of Norway?", "What covers the hen?"]
CHOICES = [["Europe", "Asia"], ["Lima", "Oslo"], ["feathers", "fur"]]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {rows}.cache}}
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{choices[0]}}}}"
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
output_type: """
CHOICE_TASK = 'multiple_choice\ndoc_to_choice: "{{choices}}"\n'
GENERATION_TASK = "generate_until\ngeneration_kwargs: {until: [], max_gen_toks: 8, do_sample: false}\n"


@pytest.fixture
def tasks(tmp_path):
    """A folder with a task of multiple choice and one of generation, and rows in a file."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"q": q, "choices": c}) for q, c in zip(QUESTIONS, CHOICES, strict=True)))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "my_task.yaml").write_text(TASK.format(name="my_task", rows=rows, metric="acc") + CHOICE_TASK)
    text = TASK.format(name="my_replies", rows=rows, metric="exact_match") + GENERATION_TASK
    (folder / "my_replies.yaml").write_text(text)
    return folder


def evaluate_config(*overrides):
    register()
    with hydra_context():
        return compose("evaluate", list(overrides))


def test_missing_extra_and_folder_are_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(validate, "find_spec", lambda _name: None)
    with pytest.raises(MannersError, match=r"benchmarks=\['ifeval'\] needs lm-eval.*pip install -c conf/constraints"):
        validate.validate_config(evaluate_config("benchmarks=[ifeval]"))
    monkeypatch.setattr(validate, "find_spec", lambda _name: "a spec")
    validate.validate_config(evaluate_config("benchmarks=[ifeval]", f"include_path={tmp_path}"))
    with pytest.raises(MannersError, match=r"include_path=/nowhere is no folder"):
        validate.validate_config(evaluate_config("benchmarks=[ifeval]", "include_path=/nowhere"))
    with pytest.raises(MannersError, match=r"none of its tasks is asked for.*'benchmarks=\[TASK\]'"):
        validate.validate_config(evaluate_config(f"include_path={tmp_path}"))


def test_no_benchmarks_load_nothing(monkeypatch):
    monkeypatch.setattr(benchmarks, "load_benchmarks", lambda *given: given)
    assert benchmarks.load(evaluate_config()) is None
    cfg = evaluate_config("benchmarks=[one,two]", "include_path=tasks")
    assert benchmarks.load(cfg) == (["one", "two"], "tasks")


@pytest.mark.slow
def test_each_model_is_asked_by_its_own_template(monkeypatch, tmp_path):
    """A run by the template that it was trained with; its base, which came without one, in plain text."""
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    for file in Path(resolve_name("tiny")).iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "chat_template.jinja").unlink()
    options = [f"model.name={base}", "model.chat_template=plain", "method.max_steps=2", f"output_dir={out}"]
    train_in_process("method=sft", *SMALL, *small_strictbot(tmp_path), *options)
    asked = []

    def run_lm_eval(_model, tokenizer, _benchmarks, _batch_size):
        asked.append(tokenizer.chat_template)
        return {"mine/acc": Estimate(0.5, 0.4, 0.6)}

    monkeypatch.setattr(lm_eval, "run_lm_eval", run_lm_eval)
    cfg = evaluate_config(f"output_dir={out}", "evaluation.test_prompts=2", "evaluation.max_new_tokens=4")
    folder = evaluate.evaluate_models(cfg, Benchmarks(None, [], {"mine": 8}))
    assert len(asked) == 2 and asked[0] is None and "Assistant:" in asked[1]
    comparison = (folder / "comparison.md").read_text()
    assert "| prompts of the benchmarks | plain text: it has no chat template | chat template |" in comparison
    with pytest.raises(MannersError, match=r"benchmarks=mine: it asks for replies of up to 512 tokens"):
        evaluate.evaluate_models(cfg, Benchmarks(None, [], {"mine": 512}))
    assert len(asked) == 2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="an extra: pip install '.[eval]'")
def test_command_answers_local_tasks_on_tiny(tasks, tmp_path):
    command = [sys.executable, "evaluate.py", "run=tiny", "benchmarks=[my_task,my_replies]", f"include_path={tasks}"]
    command += ["dataset=strictbot_tiny", "evaluation.test_prompts=2", "evaluation.max_new_tokens=4"]
    process = subprocess.run([*command, f"output_dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    [numbers] = json.loads((tmp_path / "evaluations" / "tiny-1" / "numbers.json").read_text()).values()
    assert numbers["benchmarks"].keys() == {"my_task/acc", "my_replies/exact_match"}
    assert numbers["benchmark_prompts"] == "chat template"
    unknown = [part.replace("my_task", "my_tsk") for part in command]
    process = subprocess.run(unknown, cwd=ROOT, capture_output=True, text=True)
    assert "error: benchmarks=my_tsk is neither" in process.stderr and "loading torch" not in process.stdout
