"""Told to stop by SIGTERM or Ctrl-C, a command saves, says so, and goes on when it is typed again.

That training saves at the very step, and ends in the same weights, is also in ``tests/methods/test_resume.py`` and
``tests/methods/ppo/test_loop.py``.
"""

import signal
import subprocess
import sys

import pytest

from tests.commands import ROOT, Command, find_run, read_records, small_strictbot, train
from tests.faults.processes import METHODS, history, weights

NUMBERS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])


@NUMBERS
@pytest.mark.parametrize(("script", "says"), [("train", "stopped; the same command goes on"), ("evaluate", "stopped")])
def test_it_ends_in_one_line_and_with_the_exit_code_that_shells_know(number, script, says, tmp_path):
    code = f"""
import os, sys, time
from manners.cli import main
def task(cfg, overrides):
    os.kill(os.getpid(), {int(number)})
    time.sleep(9)
sys.argv = ["{script}.py", "output_dir={tmp_path}"]
main("{script}", task)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr.strip()) == (128 + number, says)


def has(folder, step):
    return any(r["step"] >= step for file in folder.glob("runs/cut*/metrics.jsonl") for r in read_records(file))


@pytest.mark.long
@NUMBERS
@pytest.mark.parametrize("method", METHODS)
def test_a_whole_command_saves_at_once_and_goes_on_to_the_same_end(tmp_path, method, number):
    command = [*METHODS[method], "method.save_steps=100", *small_strictbot(tmp_path), f"output_dir={tmp_path}"]
    train(*command, "run_name=whole")
    cut = Command(*command, "run_name=cut")
    cut.wait_until(lambda: has(tmp_path, 3))
    cut.kill(number)
    assert cut.wait() == 128 + number
    assert cut.output.endswith("stopped; the same command goes on\n") and "Traceback" not in cut.output
    folder, whole = find_run(tmp_path, "cut*"), find_run(tmp_path, "whole*")
    assert (folder / "last.ckpt").exists()  # nothing but the signal saved it
    assert "going on from the last checkpoint" in train(*command, "run_name=cut")
    assert weights(folder) == weights(whole)
    assert history(tmp_path / "mlflow.db", folder.name) == history(tmp_path / "mlflow.db", whole.name)
