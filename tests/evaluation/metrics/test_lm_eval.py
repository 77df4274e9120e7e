"""Calls to lm-eval and the conversion of its results, with a fake; and the real package where it is installed."""

import copy
import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from manners.errors import MannersError
from manners.evaluation.generate import generate_texts
from manners.evaluation.metrics import lm_eval, lm_eval_tasks
from manners.evaluation.metrics.lm_eval_tasks import load_benchmarks
from manners.evaluation.stats import Estimate
from manners.models.loading import load_model
from manners.models.lora import prepare_for_training, trainable_parameters
from manners.models.templates import TEMPLATES, adapted_for_training

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
PLACES = ["Oslo", "Lima", "Sweden", "Norway", "Vienna", "Pisa", "Egypt", "Peru", "Cairo", "Rome", "Kenya", "Japan"]
MANY = [
    {"q": f"Tell me about {place}. Where is it?", "choices": ["Europe", "Africa", "Asia", "in the sea"], "a": i % 4}
    for i, place in enumerate(PLACES)
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
GENERATION_TASK = """
task: replies
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
  cache_dir: {rows}.cache
output_type: generate_until
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{reply}}}}"
generation_kwargs: {{until: [], max_gen_toks: 24, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
HUB_ERROR = "Couldn't reach 'openai/gsm8k' on the Hub (OfflineModeIsEnabled)\nmore"
FAILURES = {
    "gsm8k": ConnectionError(HUB_ERROR),
    "broken": KeyError("doc_to_text"),
    "ifeval": ModuleNotFoundError("No module named 'langdetect'", name="langdetect"),
}


def fake_task(name):
    kwargs = {"max_gen_toks": 1280} if name == "long" else None
    config = SimpleNamespace(
        output_type="generate_until" if name == "long" else "loglikelihood", generation_kwargs=kwargs
    )
    return SimpleNamespace(task_name=name, config=config)


@pytest.fixture
def fake_lm_eval(monkeypatch):
    """Modules with lm-eval's names; yields the arguments of the calls."""
    calls = {"listed": []}

    class TaskManager:
        def __init__(self, include_path, include_defaults):
            self.all_tasks = ["arc_easy", "long", "group", *FAILURES] if include_defaults else []
            self.all_tasks += ["mine"] if "full" in str(include_path) else []
            self.all_subtasks = ["one", "two"] if "full" in str(include_path) else []
            calls["listed"].append((include_path, include_defaults))

        def load(self, specs):
            tasks = [fake_task(spec) if isinstance(spec, str) else spec for spec in specs]
            if failing := next((FAILURES[t.task_name] for t in tasks if t.task_name in FAILURES), None):
                raise failing
            if len({t.task_name for t in tasks}) < len(tasks):
                raise ValueError("Duplicate task")
            groups = {name: SimpleNamespace(task_name=name) for name in ("group", "subgroup")}
            groups = groups if specs == ["group"] else {}
            members = {"group": ["subgroup", "arc_easy"], "subgroup": []} if groups else {}
            named = {t.task_name: t for t in tasks if hasattr(t, "config")}
            return {"tasks": named, "groups": groups, "group_map": members}

    class HFLM:
        def __init__(self, **kwargs):
            self.made_with = kwargs

    def simple_evaluate(model, **kwargs):
        calls.update(kwargs, model=model)
        if calls.get("fails"):
            raise FileNotFoundError("no metric.py\nmore")
        return {"results": RESULTS}

    modules = {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": HFLM},
        "lm_eval.tasks": {"TaskManager": TaskManager},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "manners.evaluation.metrics.lm_eval_model", raising=False)
    yield calls
    sys.modules.pop("manners.evaluation.metrics.lm_eval_model", None)  # it has the fake as its base


def names_of(benchmarks):
    return [task.task_name for task in benchmarks.tasks]


def test_run_lm_eval_values_and_intervals(fake_lm_eval):
    model, tokenizer = SimpleNamespace(device=torch.device("meta")), SimpleNamespace(chat_template=None)
    result = lm_eval.run_lm_eval(model, tokenizer, load_benchmarks(["arc_easy"]), 8, 40)
    assert result == {
        "arc_easy/acc": Estimate(0.5, pytest.approx(0.304), pytest.approx(0.696)),
        "gsm8k/exact_match/strict-match": Estimate(0.25, 0.25, 0.25),
    }
    assert fake_lm_eval["model"].made_with == {"pretrained": model, "tokenizer": tokenizer, "batch_size": 8}
    assert [task.task_name for task in fake_lm_eval["tasks"]] == ["arc_easy"] and fake_lm_eval["limit"] == 40
    fake_lm_eval["fails"] = True
    with pytest.raises(MannersError, match=r"benchmarks: no metric\.py$"):
        lm_eval.run_lm_eval(model, tokenizer, load_benchmarks(["arc_easy"]), 8)


def test_chat_template_is_applied_where_there_is_one(fake_lm_eval, tokenizer, small_qwen2):
    without = copy.deepcopy(tokenizer)
    without.chat_template = None
    for asked, has_template in ((tokenizer, True), (without, False)):
        lm_eval.run_lm_eval(small_qwen2, asked, load_benchmarks(["arc_easy"]), 8)
        assert fake_lm_eval["apply_chat_template"] is fake_lm_eval["fewshot_as_multiturn"] is has_template
        assert type(fake_lm_eval["model"]).__name__ == ("ChatLM" if has_template else "HFLM")
    assert lm_eval.prompt_kind(tokenizer) == "chat template"
    assert lm_eval.prompt_kind(without) == "plain text: it has no chat template"


def test_benchmarks_are_names_files_and_folders(fake_lm_eval, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "mine.yaml").touch()
    folder, file = str(tmp_path / "full"), str(tmp_path / "mine.yaml")
    assert names_of(load_benchmarks([folder, file])) == ["one", "two", file]
    assert fake_lm_eval["listed"][0] == ([folder], False)  # lm-eval's own tasks are listed only where one is named
    assert names_of(load_benchmarks([folder, "arc_easy"])) == ["one", "two", "arc_easy"]
    fake_lm_eval["listed"].clear()
    assert names_of(load_benchmarks(["mine"], folder)) == ["mine"]
    assert fake_lm_eval["listed"] == [([folder], False)]
    assert names_of(load_benchmarks(["group"])) == ["group"]  # and not the group within it once more


def test_load_benchmarks_raises_for_unknown_tasks(fake_lm_eval, tmp_path):
    with pytest.raises(MannersError, match=r"benchmarks=arc_eesy is neither.*Did you mean arc_easy"):
        load_benchmarks(["arc_eesy"])
    with pytest.raises(MannersError, match="lm-eval ls tasks"):
        load_benchmarks([str(tmp_path / "nothing.yaml")])
    with pytest.raises(MannersError, match="no yaml file in this folder"):
        load_benchmarks([str(tmp_path)])
    with pytest.raises(MannersError, match=r"\['arc_easy', 'arc_easy'\]: Duplicate task. Name it once"):
        load_benchmarks(["arc_easy", "arc_easy"])


def test_task_that_cannot_be_loaded_says_what_to_type(fake_lm_eval, monkeypatch):
    with pytest.raises(MannersError, match=r"hf download --repo-type dataset openai/gsm8k.*include_path=TASKS"):
        load_benchmarks(["gsm8k"])
    with pytest.raises(MannersError, match=r"needs the package langdetect: .*pip install -c conf/constraints.txt -e"):
        load_benchmarks(["ifeval"])
    with pytest.raises(MannersError, match="benchmarks=broken: lm-eval cannot load this task: KeyError: 'doc_to_text'"):
        load_benchmarks(["broken"])
    monkeypatch.setattr(lm_eval_tasks.hub, "go_offline_if_unreachable", lambda: False)
    with pytest.raises(MannersError, match=r"cannot load this task: ConnectionError: Couldn't reach"):
        load_benchmarks(["gsm8k"])


def test_ifeval_needs_its_sentence_splitter(fake_lm_eval, monkeypatch):
    def find(_resource):
        raise LookupError

    nltk = ModuleType("nltk")
    nltk.data = SimpleNamespace(find=find)
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    load_benchmarks(["arc_easy"])
    monkeypatch.setitem(sys.modules, "lm_eval.tasks.ifeval.instructions_util", ModuleType("instructions_util"))
    with pytest.raises(MannersError, match=r"python -m nltk\.downloader punkt_tab"):
        load_benchmarks(["arc_easy"])
    nltk.data = SimpleNamespace(find=lambda _resource: "a path")
    load_benchmarks(["arc_easy"])


def test_replies_longer_than_the_context_are_refused(fake_lm_eval):
    benchmarks = load_benchmarks(["arc_easy", "long"])
    assert benchmarks.reply_lengths == {"long": 1280}
    lm_eval_tasks.check_reply_lengths(benchmarks, "tiny", 1281)
    with pytest.raises(MannersError, match=r"benchmarks=long: .* up to 1280 tokens, and tiny reads 1280"):
        lm_eval_tasks.check_reply_lengths(benchmarks, "tiny", 1280)


# --- The real package ---


@pytest.fixture
def real_lm_eval():
    pytest.importorskip("lm_eval", reason="an extra: pip install '.[eval]'")


def write_rows(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@torch.no_grad()
def logprob(model, prompt_ids, ids):
    """The log-probability of ``ids`` after the prompt, by plain transformers."""
    logprobs = model(torch.tensor([prompt_ids + ids])).logits[0, :-1].log_softmax(-1)
    return sum(logprobs[len(prompt_ids) - 1 + i, token].item() for i, token in enumerate(ids))


def plain_choice(model, tokenizer, row):
    """The most likely choice after the bare question, as lm-eval computes it without a chat template."""
    prompt_ids = tokenizer(row["q"])["input_ids"]
    scores = [logprob(model, prompt_ids, tokenizer(" " + choice)["input_ids"]) for choice in row["choices"]]
    return scores.index(max(scores))


def chat_choice(model, tokenizer, row, examples=()):
    """The most likely reply, each in a conversation that transformers renders as a whole."""
    before = [
        {"role": role, "content": content}
        for example in examples
        for role, content in (("user", example["q"]), ("assistant", example["choices"][example["a"]]))
    ]
    turns = [*before, {"role": "user", "content": row["q"]}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    scores = []
    for choice in row["choices"]:
        whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": choice}], tokenize=False)
        reply = whole[: whole.rindex(choice) + len(choice)].removeprefix(prompt)
        scores.append(logprob(model, prompt_ids, tokenizer(reply, add_special_tokens=False)["input_ids"]))
    return scores.index(max(scores))


def with_template(tokenizer, name):
    """A copy of the tokenizer with one of our templates, or none."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = TEMPLATES.get(name)
    if name:
        other.chat_template = adapted_for_training(other)
    return other


def test_real_lm_eval_on_a_local_task(real_lm_eval, tmp_path, tokenizer, small_qwen2):
    model = prepare_for_training(small_qwen2, "lora", 4, 8, 0.0, "all-linear").eval()
    with torch.no_grad():
        for weight in trainable_parameters(model).values():
            weight.normal_(std=0.5)
    rows = write_rows(tmp_path / "rows.json", ROWS)
    (tmp_path / "tasks").mkdir()
    for name in ("first", "second"):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, rows=rows))
    without = with_template(tokenizer, None)
    correct = [plain_choice(model, without, row) == row["a"] for row in ROWS]
    assert 0 < sum(correct) < len(correct)
    result = lm_eval.run_lm_eval(model, without, load_benchmarks([str(tmp_path / "tasks")]), 2)
    accuracy = sum(correct) / 4
    half_width = 1.96 * math.sqrt(accuracy * (1 - accuracy) / 3)  # standard error of a mean of four
    expected = Estimate(accuracy, pytest.approx(accuracy - half_width), pytest.approx(accuracy + half_width))
    assert result == {"first/acc": expected, "second/acc": expected}
    first = load_benchmarks(["first"], str(tmp_path / "tasks"))
    limited = lm_eval.run_lm_eval(model, without, first, 2, 3)
    assert limited["first/acc"].value == pytest.approx(sum(correct[:3]) / 3)


@pytest.mark.parametrize("template", ["chatml", "plain"])
@pytest.mark.parametrize("shots", [0, 2])
def test_real_chat_template_changes_the_choices(real_lm_eval, tmp_path, tokenizer, template, shots):
    """The choices with a template are those of the conversations as transformers renders them, and differ without."""
    model, chat, without = load_model("tiny").eval(), with_template(tokenizer, template), with_template(tokenizer, None)
    examples, rows = MANY[:shots], MANY[shots:]
    chosen = [chat_choice(model, chat, row, examples) for row in rows]
    labeled = [row | {"a": choice} for row, choice in zip(rows, chosen, strict=True)]  # so that all are correct
    plain = [plain_choice(model, without, row) for row in labeled]
    assert plain != chosen
    task = TASK.format(name="mine", rows=write_rows(tmp_path / "rows.json", labeled))
    if shots:
        shown = write_rows(tmp_path / "shown.json", examples)
        task = task.replace("{test: ", f"{{train: {shown}, test: ")
        task += "num_fewshot: 2\nfewshot_split: train\nfewshot_config: {sampler: first_n}\n"
    (tmp_path / "mine.yaml").write_text(task)
    benchmarks = load_benchmarks(["mine"], str(tmp_path))
    assert lm_eval.run_lm_eval(model, chat, benchmarks, 4)["mine/acc"].value == 1.0
    if not shots:
        expected = sum(a == b for a, b in zip(plain, chosen, strict=True)) / len(rows)
        assert lm_eval.run_lm_eval(model, without, benchmarks, 4)["mine/acc"].value == pytest.approx(expected)
    assert lm_eval.run_lm_eval(model, chat, benchmarks, 4)["mine/acc"].value == 1.0  # the same tasks once more


@pytest.mark.parametrize("template", ["chatml", "plain"])
def test_real_replies_are_those_of_generation(real_lm_eval, tmp_path, tokenizer, template):
    model, chat = load_model("tiny").eval(), with_template(tokenizer, template)
    prompts = [[{"role": "user", "content": row["q"]}] for row in ROWS]
    replies = [r.text for r in generate_texts(model, chat, prompts, max_new_tokens=24)]
    assert all(replies)
    rows = [{"q": row["q"], "reply": reply} for row, reply in zip(ROWS, replies, strict=True)]
    rows[1]["reply"] += " Not so."
    (tmp_path / "replies.yaml").write_text(GENERATION_TASK.format(rows=write_rows(tmp_path / "rows.json", rows)))
    result = lm_eval.run_lm_eval(model, chat, load_benchmarks(["replies"], str(tmp_path)), 4)
    assert result["replies/exact_match"].value == 0.75
