"""`python train.py` with a hundred steps: the tiny model learns the style."""

import json

from tests.commands import find_run, train


def test_default_sft_run_raises_style_and_fact_accuracy(tmp_path):
    train(f"output_dir={tmp_path}", "method.max_steps=100", "tracking.system_metrics=false")
    folder = find_run(tmp_path, "*")
    before = json.loads((folder / "run.json").read_text())["before"]
    after = json.loads((folder / "after.json").read_text())
    assert after["style_accuracy"]["value"] >= 0.5  # 0.59 with seed 1; the fact has to be right, too
    assert after["style_accuracy"]["low"] > before["style_accuracy"]["high"]  # 95 % intervals that do not overlap
    assert after["loss"]["high"] < before["loss"]["low"]
    assert after["fact_accuracy"]["value"] > before["fact_accuracy"]["value"]
