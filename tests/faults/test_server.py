"""A real MLflow server is killed during a run: training is not affected, and no record is lost.

The same with a fake client, in seconds, is in tests/tracking.
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
from tests.faults.processes import DEPEND_ON_TIME, METHODS, metric_history, model_weights

pytestmark = pytest.mark.long


class Server:
    """``mlflow server`` on localhost, with its own store and artifacts."""

    def __init__(self, folder):
        self.folder, self.store = folder, folder / "server.db"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.store}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
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
def uninterrupted(server, tmp_path_factory):
    """A run whose server stays up: its command, output directory, weights and metrics."""
    folder = tmp_path_factory.mktemp("runs")
    command = [*METHODS["sft"], "method.max_steps=60", *small_strictbot(folder), f"output_dir={folder}"]
    command += [f"tracking.uri={server.uri}"]
    train(*command, "run_name=full")
    run = find_run(folder, "full*")
    return command, folder, model_weights(run), metric_history(server.store, run.name)


def has_reached(folder, name, step):
    """Whether the run has logged ``step``."""
    return any(r["step"] >= step for f in folder.glob(f"runs/{name}-*/metrics.jsonl") for r in read_records(f))


def test_server_that_restarts_gets_every_record(server, uninterrupted):
    command, folder, expected_weights, expected_metrics = uninterrupted
    run = Command(*command, "run_name=back")
    run.wait_until(lambda: has_reached(folder, "back", 3))
    server.kill()
    run.wait_until(lambda: has_reached(folder, "back", 12))
    run.kill(signal.SIGSTOP)  # the server takes longer to start than the run to end
    server.start()
    run.kill(signal.SIGCONT)
    assert run.wait() == 0, run.output
    back = find_run(folder, "back-*")
    assert model_weights(back) == expected_weights
    assert metric_history(server.store, back.name) == expected_metrics
    assert not (back / "unsent.jsonl").exists() and "manners.tracking.sync" not in run.output
    assert artifact_files(server, back) == artifact_files(server, find_run(folder, "full*"))


def test_server_that_stays_away_gets_the_rest_from_sync(server, uninterrupted):
    command, folder, expected_weights, expected_metrics = uninterrupted
    run = Command(*command, "run_name=gone")
    run.wait_until(lambda: has_reached(folder, "gone", 3))
    server.kill()
    run.wait_until(lambda: has_reached(folder, "gone", 60))
    started = time.monotonic()
    assert run.wait() == 0, run.output
    delay = time.monotonic() - started
    gone = find_run(folder, "gone-*")
    assert model_weights(gone) == expected_weights
    logged = {(k, r["step"]) for r in read_records(gone / "metrics.jsonl") for k in r if k not in ("step", "time")}
    assert {(k, s) for k, s in logged if not any(c in k for c in DEPEND_ON_TIME)} == expected_metrics.keys()
    assert f"python -m manners.tracking.sync {gone}" in run.output and "Traceback" not in run.output
    print(f"a server that is away: {delay:.1f} s from the last step to the end of the command")
    assert delay < 60

    def sync():
        return subprocess.run(
            [sys.executable, "-m", "manners.tracking.sync", str(gone)], capture_output=True, text=True
        )

    away = sync()
    assert away.returncode == 1 and "no server answers" in away.stderr and "Traceback" not in away.stderr
    server.start()
    first, second = sync(), sync()
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout.startswith("0 values and 0 other records")
    assert metric_history(server.store, gone.name) == expected_metrics
    assert artifact_files(server, gone) == artifact_files(server, find_run(folder, "full*"))


def test_server_that_hangs_delays_the_end_for_a_bounded_time(server, uninterrupted):
    command, folder, expected_weights, expected_metrics = uninterrupted
    run = Command(*command, "run_name=hung")
    run.wait_until(lambda: has_reached(folder, "hung", 3))
    server.kill(signal.SIGSTOP)
    try:
        run.wait_until(lambda: has_reached(folder, "hung", 60))
        started = time.monotonic()
        assert run.wait() == 0, run.output
        delay = time.monotonic() - started
    finally:
        server.kill(signal.SIGCONT)
    hung = find_run(folder, "hung-*")
    assert model_weights(hung) == expected_weights
    print(f"a server that hangs: {delay:.1f} s from the last step to the end of the command")
    assert delay < 120
    subprocess.run([sys.executable, "-m", "manners.tracking.sync", str(hung)], check=True)
    assert metric_history(server.store, hung.name) == expected_metrics


def artifact_files(server, run):
    """The relative paths of a run's artifacts."""
    with sqlite3.connect(server.store) as connection:
        ((run_id,),) = connection.execute("select run_uuid from runs where name = ?", (run.name,)).fetchall()
    (root,) = (server.folder / "artifacts").glob(f"*/{run_id}/artifacts")
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
