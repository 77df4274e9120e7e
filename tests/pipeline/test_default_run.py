"""The first stage of ``make run``, whole: in a hundred steps the tiny model visibly learns a manner."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_light_sft_teaches_the_manner(tmp_path):
    options = [f"output_dir={tmp_path}", "method.max_steps=100", "tracking.system_metrics=false"]
    command = [sys.executable, "train.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    before = json.loads((folder / "run.json").read_text())["before"]
    after = json.loads((folder / "after.json").read_text())
    assert after["fit"]["value"] >= 0.6  # three seeds: 0.65 to 0.67, from 0.40
    assert after["fit"]["low"] > before["fit"]["high"]  # 95 % intervals that do not meet
    assert after["loss"]["high"] < before["loss"]["low"]
    assert after["right"]["value"] > before["right"]["value"]
