"""What lm-eval is asked and what is made of its answer, by a stand-in; and the real one, where it is installed."""

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
def stand_in(monkeypatch):
    """lm-eval's own names, and what they are called with."""
    asked = {}

    class TaskManager:
        def __init__(self, include_path, include_defaults):
            self.all_tasks = ["arc_easy", "gsm8k"] if include_defaults else []
            self.all_subtasks = ["one", "two"] if "full" in str(include_path) else []
            asked.setdefault("listed", []).append((include_path, include_defaults))

    def simple_evaluate(model, **how):
        asked.update(how, model=model)
        if how["tasks"] == ["gsm8k"]:
            raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub\nmore")
        return {"results": RESULTS}

    parts = {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": lambda **how: how},
        "lm_eval.tasks": {"TaskManager": TaskManager},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return asked


MODEL, TOKENIZER = SimpleNamespace(), SimpleNamespace()


def test_values_with_their_intervals(stand_in):
    found = lm_eval.run_lm_eval(MODEL, TOKENIZER, ["arc_easy"], 8, 40)
    assert found == {
        "arc_easy/acc": Estimate(0.5, pytest.approx(0.304), pytest.approx(0.696)),
        "gsm8k/exact_match/strict-match": Estimate(0.25, 0.25, 0.25),
    }
    assert stand_in["model"] == {"pretrained": MODEL, "tokenizer": TOKENIZER, "batch_size": 8}
    assert (stand_in["tasks"], stand_in["limit"]) == (["arc_easy"], 40)


def test_folders_and_files_are_tasks_too(stand_in, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "mine.yaml").touch()
    folder, file = str(tmp_path / "full"), str(tmp_path / "mine.yaml")
    lm_eval.run_lm_eval(MODEL, TOKENIZER, [folder, file], 8, None)
    assert stand_in["tasks"] == ["one", "two", file]
    assert stand_in["listed"][0] == ([folder], False)  # none of lm-eval's own is named: they are not listed
    lm_eval.run_lm_eval(MODEL, TOKENIZER, [folder, "arc_easy"], 8, None)
    assert stand_in["tasks"] == ["one", "two", "arc_easy"]


def test_what_is_no_task_is_refused(stand_in, tmp_path):
    with pytest.raises(MannersError, match=r"lm_eval=arc_eesy is neither.*Near: arc_easy"):
        lm_eval.run_lm_eval(MODEL, TOKENIZER, ["arc_eesy"], 8, None)
    with pytest.raises(MannersError, match="lm-eval ls tasks"):
        lm_eval.run_lm_eval(MODEL, TOKENIZER, [str(tmp_path / "nothing.yaml")], 8, None)
    with pytest.raises(MannersError, match="no yaml file in this folder"):
        lm_eval.run_lm_eval(MODEL, TOKENIZER, [str(tmp_path)], 8, None)
    with pytest.raises(MannersError, match=r"Couldn't reach 'openai/gsm8k' on the Hub\. lm-eval takes its data"):
        lm_eval.run_lm_eval(MODEL, TOKENIZER, ["gsm8k"], 8, None)


@torch.no_grad()
def likeliest(model, tokenizer, row):
    """The choice with the highest log-probability after the question, as lm-eval asks it."""
    start = tokenizer(row["q"])["input_ids"]
    scores = []
    for choice in row["choices"]:
        ids = torch.tensor([start + tokenizer(" " + choice)["input_ids"]])
        told = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        scores.append(told[len(start) - 1 :].sum().item())
    return scores.index(max(scores))


def test_the_real_one_on_data_of_one_s_own(tmp_path, tokenizer, small_qwen2):
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
    right = [likeliest(model, tokenizer, row) == row["a"] for row in ROWS]
    assert 0 < sum(right) < len(right)
    found = lm_eval.run_lm_eval(model, tokenizer, [str(tmp_path / "tasks")], 2, None)
    share = sum(right) / 4
    wide = 1.96 * math.sqrt(share * (1 - share) / 3)  # the standard error of a mean of four
    wanted = Estimate(share, pytest.approx(share - wide), pytest.approx(share + wide))
    assert found == {"first/acc": wanted, "second/acc": wanted}
    few = lm_eval.run_lm_eval(model, tokenizer, [str(tmp_path / "tasks" / "first.yaml")], 2, 3)
    assert few["first/acc"].value == pytest.approx(sum(right[:3]) / 3)
