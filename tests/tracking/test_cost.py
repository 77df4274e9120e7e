"""The cost of a run adds up over the parts that kills split it into."""

import json
import os
import sys
import time

import pytest

from manners.runtime.run_dir import RunDir, RunState, load_state
from manners.tracking import cost


def test_resumed_run_adds_seconds_up_to_the_last_metric(tmp_path, monkeypatch):
    """Began at 1000, wrote metrics until 1030, was killed, resumed at 2000 and ended at 2012: 42 seconds."""
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    cost.start_clock(RunDir(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    os.utime(tmp_path / "metrics.jsonl", (1030, 1030))
    now = 2000.0
    directory = RunDir(tmp_path, load_state(tmp_path))
    cost.start_clock(directory)
    directory.update_state(tokens=700)
    now = 2012.0
    metrics = cost.cost_metrics(directory, "cpu")
    assert (metrics["cost/seconds"], metrics["cost/tokens"]) == (42.0, 700.0)
    assert json.loads((tmp_path / "run.json").read_text())["seconds"] == 42.0


def test_part_without_metrics_subtracts_nothing(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    os.utime(tmp_path / "metrics.jsonl", (500, 500))
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    directory = RunDir(tmp_path, RunState(seconds=7.0, since=900.0))
    cost.start_clock(directory)
    assert cost.cost_metrics(directory, "cpu")["cost/seconds"] == 7.0
    assert "cost/tokens" not in cost.cost_metrics(directory, "cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the peak cannot be reset")
def test_peak_memory_is_that_of_the_run_not_of_the_one_before(tmp_path):
    block = b"x" * 400_000_000
    before = cost.peak_memory("cpu")
    assert before > len(block)
    del block
    cost.start_clock(RunDir(tmp_path))
    if cost.peak_memory("cpu") == before:
        pytest.skip("this system does not reset the peak")
    assert cost.peak_memory("cpu") < before - 300e6
    block = b"x" * 200_000_000
    assert cost.peak_memory("cpu") > len(block)
