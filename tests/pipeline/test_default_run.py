"""`python train.py` with a hundred steps: the tiny model learns the style."""

import json

import numpy as np

from manners.data.clusters import cluster_ids
from manners.data.types import Prompt
from manners.evaluation.stats import paired_change
from tests.commands import find_run, train


def test_default_sft_run_raises_style_and_fact_accuracy(tmp_path):
    train(f"output_dir={tmp_path}", "method.max_steps=100", "tracking.system_metrics=false")
    folder = find_run(tmp_path, "*")
    before = json.loads((folder / "run.json").read_text())["before"]
    after = json.loads((folder / "after.json").read_text())
    assert after["style_accuracy"]["value"] >= 0.5  # 0.59 with seed 1; the fact has to be right, too
    old, new = (np.array([g["matches_style"] for g in result["generations"]]) for result in (before, after))
    prompts = [Prompt([{"role": "user", "content": g["prompt"]}]) for g in after["generations"]]
    assert paired_change(old, new, cluster_ids(prompts)).low > 0
    assert after["loss"]["high"] < before["loss"]["low"]
    assert after["fact_accuracy"]["value"] > before["fact_accuracy"]["value"]
