"""Eight jobs at once on one fresh SQLite store: none crashes, no value is lost, and there is one champion."""

import os
import sqlite3
import subprocess
import sys

from manners.runtime.paths import ROOT

JOBS, STEPS, METRICS = 8, 60, ("train/loss", "train/rate", "eval/loss", "ppo/kl", "ppo/reward")

# All that a job does with the store, without training. The jobs are forked from a process that has imported everything
# but opened no connection: eight processes with a connection each, at the cost of one import of MLflow.
CODE = f"""
import multiprocessing, os, sys, traceback
import mlflow, mlflow.store.tracking.sqlalchemy_store
import mlflow.store.model_registry.sqlalchemy_store
from manners.data.loading import Splits
from manners.runtime import run_dir
from manners.tracking import logger, registry
from tests.configs import changed

barrier = multiprocessing.Barrier({JOBS})
log_input = mlflow.log_input

def log_input_at_once(*args, **kwargs):
    mlflow.log_input = log_input
    barrier.wait(120)  # all jobs log data that the store does not have yet, at the same time
    log_input(*args, **kwargs)

mlflow.log_input = log_input_at_once

def run_job(seed):
    cfg = changed(f"output_dir={{sys.argv[1]}}", f"seed={{seed}}", "tracking.system_metrics=false")
    with run_dir.acquire(cfg, {{"data": "digest"}}) as directory:
        with logger.open_run(cfg, directory, Splits(), "digest", {{}}, []) as run:
            for step in range({STEPS}):
                run.log({{name: 100 * seed + step + i / 10 for i, name in enumerate({METRICS})}}, step)
            (directory.path / "model").mkdir()
            (directory.path / "model" / "config.json").write_text("{{}}")
            run.artifact(directory.path / "model")
        registry.register_and_report(cfg, run.client, run.run_id, abs(seed - 5))

pids = []
for seed in range({JOBS}):
    if not (pid := os.fork()):
        try:
            run_job(seed)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    pids.append(pid)
sys.exit(sum(bool(os.waitpid(pid, 0)[1]) for pid in pids))
"""


def test_eight_concurrent_jobs_lose_nothing(tmp_path):
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr  # the number of jobs that failed
    assert "tracking server" not in done.stderr  # the beginning of each message about refused or unsent records
    assert done.stdout.count("registered as models:/manners/") == JOBS, done.stdout + done.stderr
    database = sqlite3.connect(tmp_path / "mlflow.db")
    stored = database.execute(
        "select p.value, m.key, m.step, m.value from metrics m join params p on m.run_uuid = p.run_uuid"
        " where p.key = 'seed'"
    ).fetchall()
    logged = [
        (str(seed), name, step, 100 * seed + step + i / 10)
        for seed in range(JOBS)
        for step in range(STEPS)
        for i, name in enumerate(METRICS)
    ]
    assert sorted(stored) == sorted(logged)
    assert database.execute("select status, count(*) from runs group by status").fetchall() == [("FINISHED", JOBS)]
    versions = database.execute("select version from model_versions").fetchall()
    assert sorted(v for (v,) in versions) == list(range(1, JOBS + 1))
    (champion,) = database.execute(
        "select p.value from registered_model_aliases a join model_versions v on a.version = v.version"
        " join params p on p.run_uuid = v.run_id where a.alias = 'champion' and p.key = 'seed'"
    ).fetchall()
    assert champion == ("5",)  # the job with a loss of 0
