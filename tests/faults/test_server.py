"""A real MLflow server is killed in mid-run: training ends as if nothing had happened, and nothing is lost.

The short forms, on a stand-in for MLflow's client, are in tests/test_tracking.py.
"""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest

from tests.commands import Command, find_run, read_records, small_strictbot, train
from tests.faults.processes import METHODS, OF_THE_CLOCK, history, weights

pytestmark = pytest.mark.long


class Server:
    """``mlflow server`` on loopback, with a store and artifacts of its own."""

    def __init__(self, folder):
        self.folder, self.store = folder, folder / "server.db"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.store}"]
        command += ["--artifacts-destination", str(self.folder / "kept")]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        pytest.fail((self.folder / "server.log").read_text())

    def kill(self, number=signal.SIGKILL):
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """The run that nothing befalls: its command, folder, weights and history."""
    folder = tmp_path_factory.mktemp("runs")
    command = [*METHODS["sft"], "method.max_steps=60", *small_strictbot(folder), f"output_dir={folder}"]
    command += [f"tracking.uri={server.uri}"]
    train(*command, "run_name=whole")
    run = find_run(folder, "whole*")
    return command, folder, weights(run), history(server.store, run.name)


def at_step(folder, name, step):
    """Whether the run has come so far."""
    return any(r["step"] >= step for f in folder.glob(f"runs/{name}-*/metrics.jsonl") for r in read_records(f))


def test_a_server_that_comes_back_hears_all_of_it(server, whole):
    command, folder, ends, told = whole
    run = Command(*command, "run_name=back")
    run.wait_until(lambda: at_step(folder, "back", 3))
    server.kill()
    run.wait_until(lambda: at_step(folder, "back", 12))
    run.kill(signal.SIGSTOP)  # a server takes longer to start than this run to end
    server.start()
    run.kill(signal.SIGCONT)
    assert run.wait() == 0, run.output
    back = find_run(folder, "back-*")
    assert weights(back) == ends and history(server.store, back.name) == told
    assert not (back / "unsent.jsonl").exists() and "replay" not in run.output
    assert files(server, back) == files(server, find_run(folder, "whole*"))


def test_one_that_never_does_costs_seconds_and_is_told_the_rest_by_replay(server, whole):
    command, folder, ends, told = whole
    run = Command(*command, "run_name=gone")
    run.wait_until(lambda: at_step(folder, "gone", 3))
    server.kill()
    run.wait_until(lambda: at_step(folder, "gone", 60))
    began = time.monotonic()
    assert run.wait() == 0, run.output
    lasted = time.monotonic() - began
    gone = find_run(folder, "gone-*")
    assert weights(gone) == ends
    kept = {(k, r["step"]) for r in read_records(gone / "metrics.jsonl") for k in r if k not in ("step", "time")}
    assert {(k, s) for k, s in kept if not any(c in k for c in OF_THE_CLOCK)} == told.keys()
    assert f"python -m manners.tracking.sync {gone}" in run.output and "Traceback" not in run.output
    print(f"a server that is gone: {lasted:.1f} s from the last step to the end of the command")
    assert lasted < 60

    def replay():
        return subprocess.run(
            [sys.executable, "-m", "manners.tracking.sync", str(gone)], capture_output=True, text=True
        )

    away = replay()
    assert away.returncode == 1 and "no server answers" in away.stderr and "Traceback" not in away.stderr
    server.start()
    first, second = replay(), replay()
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout.startswith("0 values and 0 other things")
    assert history(server.store, gone.name) == told
    assert files(server, gone) == files(server, find_run(folder, "whole*"))


def test_one_that_hangs_holds_the_end_up_for_a_bounded_time(server, whole):
    command, folder, ends, told = whole
    run = Command(*command, "run_name=hung")
    run.wait_until(lambda: at_step(folder, "hung", 3))
    server.kill(signal.SIGSTOP)
    try:
        run.wait_until(lambda: at_step(folder, "hung", 60))
        began = time.monotonic()
        assert run.wait() == 0, run.output
        lasted = time.monotonic() - began
    finally:
        server.kill(signal.SIGCONT)
    hung = find_run(folder, "hung-*")
    assert weights(hung) == ends
    print(f"a server that hangs: {lasted:.1f} s from the last step to the end of the command")
    assert lasted < 120
    subprocess.run([sys.executable, "-m", "manners.tracking.sync", str(hung)], check=True)
    assert history(server.store, hung.name) == told


def files(server, run):
    """The artifacts of a run, by path below its own folder."""
    with sqlite3.connect(server.store) as base:
        ((run_id,),) = base.execute("select run_uuid from runs where name = ?", (run.name,)).fetchall()
    (root,) = (server.folder / "kept").glob(f"*/{run_id}/artifacts")
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
