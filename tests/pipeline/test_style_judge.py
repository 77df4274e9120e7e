"""Which judge a config means, and what is missing for it, before anything is trained."""

import pytest
from omegaconf import OmegaConf

from manners.config.compose import RunSpec
from manners.data.types import Conversation
from manners.errors import MannersError
from manners.evaluation.judges import judge_by_rules
from manners.pipeline import dependencies
from manners.pipeline.style_judge import check_categories, check_style_judge, judge_line, load_errors, load_judge
from tests.configs import compose


def config(tmp_path, style_judge="rules", labels=None):
    cfg = compose(f"output_dir={tmp_path}")
    cfg.dataset.style_judge, cfg.dataset.judge_labels = style_judge, labels
    return cfg


def test_none_and_rules(tmp_path):
    assert load_judge("none", config(tmp_path)) is None and load_judge("rules", config(tmp_path)) is judge_by_rules
    assert judge_line("none", config(tmp_path)) == "" and "judged by: rules." in judge_line("rules", config(tmp_path))


def test_missing_classifier_is_reported_before_training(tmp_path):
    cfg = config(tmp_path, "classifier")
    for check in (check_style_judge, lambda cfg: dependencies.check_rows(RunSpec(cfg, []))):
        with pytest.raises(MannersError, match=r"python train\.py experiment=style_classifier"):
            check(cfg)


def test_missing_labels_are_reported_before_training(tmp_path):
    with pytest.raises(MannersError, match=r"dataset\.judge_labels"):
        check_style_judge(config(tmp_path, labels="nowhere.jsonl"))


def test_errors_are_those_of_the_labels_that_the_dataset_names(tmp_path):
    cfg = OmegaConf.create({"judge_labels": "package:judged_replies/judged_replies.jsonl"})
    assert (
        load_errors(cfg, None) is None and load_errors(OmegaConf.create({"judge_labels": None}), judge_by_rules) is None
    )
    assert load_errors(cfg, judge_by_rules).others > 100


def test_a_judge_needs_a_row_with_a_category():
    with_category, without = Conversation([], metadata={"category": "good_question"}), Conversation([])
    check_categories("rules", [without, with_category])  # of a mixture
    check_categories("none", [without])
    with pytest.raises(MannersError, match=r"no held-out row has one: dataset\.style_judge=none"):
        check_categories("rules", [without])
