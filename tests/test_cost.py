"""A run's cost adds up over the parts that a kill left of it."""

import json
import os
import sys
import time

import pytest

from manners import cost
from manners.lineage import Folder, load_state


def test_a_run_that_goes_on_adds_the_seconds_up_to_the_last_metric_of_the_part_before(tmp_path, monkeypatch):
    """It began at 1000, wrote until 1030, was killed, went on at 2000 and ended at 2012: 42 seconds."""
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    cost.start(Folder(tmp_path, {}))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    os.utime(tmp_path / "metrics.jsonl", (1030, 1030))
    now = 2000.0
    folder = Folder(tmp_path, load_state(tmp_path))
    cost.start(folder)
    folder.remember(tokens=700)
    now = 2012.0
    found = cost.total(folder, "cpu")
    assert (found["cost/seconds"], found["cost/tokens"]) == (42.0, 700.0)
    assert json.loads((tmp_path / "run.json").read_text())["seconds"] == 42.0


def test_a_part_that_wrote_nothing_takes_nothing_away(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    os.utime(tmp_path / "metrics.jsonl", (500, 500))
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    folder = Folder(tmp_path, {"seconds": 7.0, "since": 900.0})
    cost.start(folder)
    assert cost.total(folder, "cpu")["cost/seconds"] == 7.0
    assert "cost/tokens" not in cost.total(folder, "cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the peak cannot be set back")
def test_the_peak_is_the_runs_own_and_not_that_of_the_run_before(tmp_path):
    block = b"x" * 400_000_000
    before = cost.peak("cpu")
    assert before > len(block)
    del block
    cost.start(Folder(tmp_path, {}))
    if cost.peak("cpu") == before:
        pytest.skip("this system does not set the peak back")
    assert cost.peak("cpu") < before - 300e6
    again = b"x" * 200_000_000
    assert cost.peak("cpu") > len(again)
