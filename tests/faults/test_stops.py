"""On SIGTERM or Ctrl-C a command saves a checkpoint and exits, and the same command resumes.

That training saves at the very step and ends in the same weights is also tested in ``tests/methods/test_resume.py``
and ``tests/methods/ppo/test_ppo_resume.py``.
"""

import signal
import subprocess
import sys

import pytest

from tests.commands import ROOT, Command, find_run, read_records, small_strictbot, train
from tests.faults.processes import METHODS, metric_history, model_weights

SIGNALS = pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])


@SIGNALS
@pytest.mark.parametrize(
    ("script", "message"), [("train", "stopped; the same command resumes"), ("evaluate", "stopped")]
)
def test_signal_ends_a_command_with_one_line_and_exit_code(signal_number, script, message, tmp_path):
    code = f"""
import os, sys, time
from manners.cli.main import main
def task(spec):
    os.kill(os.getpid(), {int(signal_number)})
    time.sleep(9)
sys.argv = ["{script}.py", "output_dir={tmp_path}"]
main("{script}", task)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (process.returncode, process.stderr.strip()) == (128 + signal_number, message)


def has_reached(folder, step):
    return any(r["step"] >= step for file in folder.glob("runs/stopped*/metrics.jsonl") for r in read_records(file))


@pytest.mark.long
@SIGNALS
@pytest.mark.parametrize("method", METHODS)
def test_signal_saves_a_checkpoint_and_command_resumes(tmp_path, method, signal_number):
    command = [*METHODS[method], "method.save_steps=100", *small_strictbot(tmp_path), f"output_dir={tmp_path}"]
    train(*command, "run_name=full")
    stopped = Command(*command, "run_name=stopped")
    stopped.wait_until(lambda: has_reached(tmp_path, 3))
    stopped.kill(signal_number)
    assert stopped.wait() == 128 + signal_number
    assert stopped.output.endswith("stopped; the same command resumes\n") and "Traceback" not in stopped.output
    folder, full = find_run(tmp_path, "stopped*"), find_run(tmp_path, "full*")
    assert (folder / "last.ckpt").exists()  # saved because of the signal: save_steps is 100
    assert "resuming from the last checkpoint" in train(*command, "run_name=stopped")
    assert model_weights(folder) == model_weights(full)
    assert metric_history(tmp_path / "mlflow.db", folder.name) == metric_history(tmp_path / "mlflow.db", full.name)
