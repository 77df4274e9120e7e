"""A run's cost adds up over the parts that a kill left of it."""

import json
import os
import sys
import time

import pytest

from manners.runtime.run_dir import RunDir, load_state
from manners.tracking import cost


def test_a_run_that_goes_on_adds_the_seconds_up_to_the_last_metric_of_the_part_before(tmp_path, monkeypatch):
    """It began at 1000, wrote until 1030, was killed, went on at 2000 and ended at 2012: 42 seconds."""
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    cost.start_clock(RunDir(tmp_path, {}))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    os.utime(tmp_path / "metrics.jsonl", (1030, 1030))
    now = 2000.0
    folder = RunDir(tmp_path, load_state(tmp_path))
    cost.start_clock(folder)
    folder.update_state(tokens=700)
    now = 2012.0
    found = cost.cost_metrics(folder, "cpu")
    assert (found["cost/seconds"], found["cost/tokens"]) == (42.0, 700.0)
    assert json.loads((tmp_path / "run.json").read_text())["seconds"] == 42.0


def test_a_part_that_wrote_nothing_takes_nothing_away(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    os.utime(tmp_path / "metrics.jsonl", (500, 500))
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    folder = RunDir(tmp_path, {"seconds": 7.0, "since": 900.0})
    cost.start_clock(folder)
    assert cost.cost_metrics(folder, "cpu")["cost/seconds"] == 7.0
    assert "cost/tokens" not in cost.cost_metrics(folder, "cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the peak cannot be set back")
def test_the_peak_is_the_runs_own_and_not_that_of_the_run_before(tmp_path):
    block = b"x" * 400_000_000
    before = cost.peak_memory("cpu")
    assert before > len(block)
    del block
    cost.start_clock(RunDir(tmp_path, {}))
    if cost.peak_memory("cpu") == before:
        pytest.skip("this system does not set the peak back")
    assert cost.peak_memory("cpu") < before - 300e6
    again = b"x" * 200_000_000
    assert cost.peak_memory("cpu") > len(again)
