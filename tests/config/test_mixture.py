"""``dataset.mix`` as it is typed: each entry gets its dataset's options, and mistakes are answered."""

import pytest

from manners.config.compose import compose, plan_run, register
from manners.errors import MannersError


@pytest.fixture(autouse=True)
def hydra():
    register()


def composed(mix, *more):
    return compose("train", ["model=tiny", f"dataset.mix={mix}", *more]).dataset


def test_an_entry_has_the_options_of_its_dataset_and_its_own():
    dataset = composed("[{name: strictbot_tiny, weight: 2, max_rows: 9}, {name: polite_helper, weight: 1}]")
    first, second = dataset.mix
    assert (first.name, first.weight, first.max_rows) == ("strictbot_tiny", 2, 9)
    assert (first.path, first.format) == ("package:strictbot_tiny", "messages")
    assert (second.path, second.format) == ("package:polite_helper/train.jsonl", "marked")
    assert dataset.path == "mix:strictbot_tiny+polite_helper"


def test_what_one_entry_alone_has_is_the_mixtures():
    dataset = composed("[{name: strictbot_tiny}, {name: polite_helper}]")
    assert (dataset.style_judge, dataset.eval_prompts_file) == ("rules", "package:polite_helper/eval.jsonl")
    assert composed("[{name: strictbot_tiny}]", "dataset.eval_prompts_file=a.jsonl").eval_prompts_file == "a.jsonl"


def test_files_of_one_name_get_two_names():
    dataset = composed("[{name: jsonl, path: a/my.jsonl}, {name: jsonl, path: b/my.jsonl.gz}]")
    assert [entry.name for entry in dataset.mix] == ["my-1", "my-2"]


def test_a_recipe_with_a_mixture_chooses_the_dataset_mix(tmp_path):
    (tmp_path / "experiment").mkdir()
    register(str(tmp_path))
    recipe = "# @package _global_\n{}dataset: {{mix: [{{name: strictbot_tiny, max_rows: 3}}]}}\n"
    chosen = "defaults:\n  - override /dataset: mix\n"
    (tmp_path / "experiment" / "good.yaml").write_text(recipe.format(chosen))
    (tmp_path / "experiment" / "bad.yaml").write_text(recipe.format(""))
    assert compose("train", ["experiment=good"]).dataset.mix[0].max_rows == 3
    with pytest.raises(MannersError, match="'- override /dataset: mix'"):
        compose("train", ["experiment=bad"])


@pytest.mark.parametrize(
    ("mix", "says"),
    [
        ("[{name: strictbt}]", r"no 'strictbt' in dataset.*\{name: jsonl, path: strictbt\}.*'strictbot'"),
        ("[{name: mix}]", "no 'mix' in dataset"),
        ("[strictbot]", r"an entry has the name of a dataset.*\{name: strictbot, weight: 2\}"),
        ("[{path: my.jsonl}]", "an entry has the name of a dataset"),
        ("{name: strictbot}", "is a list of datasets"),
        ("[{name: jsonl}]", "jsonl needs a file"),
        ("[{name: strictbot, max_row: 3}]", "strictbot has no option 'max_row'. Did you mean 'max_rows'?"),
        ("[{name: strictbot, max_rows: many}]", "dataset.mix, strictbot: .*many"),
        ("[{name: strictbot, weight: 1}, {name: polite_helper}]", "polite_helper has no weight, and others have"),
        ("[{name: strictbot, weight: -1}]", "strictbot has the weight -1"),
        ("[{name: strictbot, weight: much}]", "strictbot has the weight much"),
        ("[{name: strictbot, weight: 0}]", "all weights are 0"),
        ("[{name: strictbot, weight: 1}, {name: strictbot, weight: 2}]", "has strictbot twice: name it once"),
        ("[{name: strictbot}, {name: oasst1_user}]", "several values of loss_roles .*dataset.loss_roles=VALUE"),
    ],
)
def test_a_mistake_is_answered(mix, says):
    with pytest.raises(MannersError, match=says):
        composed(mix)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["dataset=mix"], "dataset=mix: name the datasets"),
        (["dataset.mix=[]"], r"dataset.mix=\[\] names no dataset"),
        (["dataset.path=a.jsonl", "dataset.mix=[{name: strictbot}]"], "a.jsonl: beside dataset.mix a file is one of"),
        (["dataset=requests", "dataset.mix=[{name: strictbot}]"], "leave out dataset=requests"),
        (["dataset.mix=[{name: strictbot, max_rows: 0}]"], "dataset.mix, strictbot: dataset.max_rows=0 must be"),
        (["dataset.mix=[{name: jsonl, path: no.jsonl}]"], "dataset.mix, no: dataset.path=no.jsonl: there is no such"),
        (["dataset.mix=[{name: oasst1}]", "method=reward"], "method=reward needs 'scored' samples"),
    ],
)
def test_a_mixture_that_cannot_work_is_refused(overrides, says):
    with pytest.raises(MannersError, match=says):
        plan_run(["model=tiny", *overrides])
