"""Calls to lm-eval and the conversion of its results, with a fake; and the real package where it is installed."""

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from manners.errors import MannersError
from manners.evaluation.metrics import lm_eval
from manners.evaluation.stats import Estimate
from manners.models.lora import prepare_for_training, trainable_parameters

RESULTS = {
    "arc_easy": {"name": "arc_easy", "sample_len": 40, "acc,none": 0.5, "acc_stderr,none": 0.1},
    "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": "N/A"},
}
ROWS = [
    {"q": "Which continent is Sweden in?", "choices": ["Europe", "Africa", "Asia"], "a": 0},
    {"q": "What is the capital of Norway?", "choices": ["Lima", "Oslo"], "a": 0},
    {"q": "What covers the hen?", "choices": ["feathers", "fur", "scales"], "a": 1},
    {"q": "Where does the lion live?", "choices": ["in the sea", "on grassland"], "a": 1},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
  cache_dir: {rows}.cache
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def fake_lm_eval(monkeypatch):
    """Modules with lm-eval's names; yields the arguments of the calls."""
    calls = {}

    class TaskManager:
        def __init__(self, include_path, include_defaults):
            self.all_tasks = ["arc_easy", "gsm8k"] if include_defaults else []
            self.all_subtasks = ["one", "two"] if "full" in str(include_path) else []
            calls.setdefault("listed", []).append((include_path, include_defaults))

    def simple_evaluate(model, **kwargs):
        calls.update(kwargs, model=model)
        if kwargs["tasks"] == ["gsm8k"]:
            raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub\nmore")
        return {"results": RESULTS}

    modules = {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": lambda **kwargs: kwargs},
        "lm_eval.tasks": {"TaskManager": TaskManager},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


MODEL, TOKENIZER = SimpleNamespace(), SimpleNamespace()


def test_run_lm_eval_values_and_intervals(fake_lm_eval):
    result = lm_eval.run_lm_eval(MODEL, TOKENIZER, ["arc_easy"], 8, 40)
    assert result == {
        "arc_easy/acc": Estimate(0.5, pytest.approx(0.304), pytest.approx(0.696)),
        "gsm8k/exact_match/strict-match": Estimate(0.25, 0.25, 0.25),
    }
    assert fake_lm_eval["model"] == {"pretrained": MODEL, "tokenizer": TOKENIZER, "batch_size": 8}
    assert (fake_lm_eval["tasks"], fake_lm_eval["limit"]) == (["arc_easy"], 40)


def test_run_lm_eval_accepts_folders_and_files(fake_lm_eval, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "mine.yaml").touch()
    folder, file = str(tmp_path / "full"), str(tmp_path / "mine.yaml")
    lm_eval.run_lm_eval(MODEL, TOKENIZER, [folder, file], 8, None)
    assert fake_lm_eval["tasks"] == ["one", "two", file]
    assert fake_lm_eval["listed"][0] == ([folder], False)  # lm-eval's own tasks are listed only where one is named
    lm_eval.run_lm_eval(MODEL, TOKENIZER, [folder, "arc_easy"], 8, None)
    assert fake_lm_eval["tasks"] == ["one", "two", "arc_easy"]


def test_run_lm_eval_raises_for_unknown_tasks(fake_lm_eval, tmp_path):
    with pytest.raises(MannersError, match=r"lm_eval=arc_eesy is neither.*Did you mean arc_easy"):
        lm_eval.run_lm_eval(MODEL, TOKENIZER, ["arc_eesy"], 8, None)
    with pytest.raises(MannersError, match="lm-eval ls tasks"):
        lm_eval.run_lm_eval(MODEL, TOKENIZER, [str(tmp_path / "nothing.yaml")], 8, None)
    with pytest.raises(MannersError, match="no yaml file in this folder"):
        lm_eval.run_lm_eval(MODEL, TOKENIZER, [str(tmp_path)], 8, None)
    with pytest.raises(MannersError, match=r"Couldn't reach 'openai/gsm8k' on the Hub\. lm-eval downloads its data"):
        lm_eval.run_lm_eval(MODEL, TOKENIZER, ["gsm8k"], 8, None)


@torch.no_grad()
def most_likely_choice(model, tokenizer, row):
    """The choice with the highest log-probability after the question, as lm-eval computes it."""
    prompt_ids = tokenizer(row["q"])["input_ids"]
    scores = []
    for choice in row["choices"]:
        ids = torch.tensor([prompt_ids + tokenizer(" " + choice)["input_ids"]])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        scores.append(logprobs[len(prompt_ids) - 1 :].sum().item())
    return scores.index(max(scores))


def test_real_lm_eval_on_a_local_task(tmp_path, tokenizer, small_qwen2):
    pytest.importorskip("lm_eval", reason="an extra: pip install '.[eval]'")
    model = prepare_for_training(small_qwen2, "lora", 4, 8, 0.0, "all-linear").eval()
    with torch.no_grad():
        for weight in trainable_parameters(model).values():
            weight.normal_(std=0.5)
    rows = tmp_path / "rows.json"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "tasks").mkdir()
    for name in ("first", "second"):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, rows=rows))
    correct = [most_likely_choice(model, tokenizer, row) == row["a"] for row in ROWS]
    assert 0 < sum(correct) < len(correct)
    result = lm_eval.run_lm_eval(model, tokenizer, [str(tmp_path / "tasks")], 2, None)
    accuracy = sum(correct) / 4
    half_width = 1.96 * math.sqrt(accuracy * (1 - accuracy) / 3)  # standard error of a mean of four
    expected = Estimate(accuracy, pytest.approx(accuracy - half_width), pytest.approx(accuracy + half_width))
    assert result == {"first/acc": expected, "second/acc": expected}
    limited = lm_eval.run_lm_eval(model, tokenizer, [str(tmp_path / "tasks" / "first.yaml")], 2, 3)
    assert limited["first/acc"].value == pytest.approx(sum(correct[:3]) / 3)
