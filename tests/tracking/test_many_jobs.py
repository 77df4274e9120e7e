"""Eight jobs at once on one fresh SQLite store: none crashes, no value is lost, and one champion is left."""

import os
import sqlite3
import subprocess
import sys

from manners.runtime.paths import ROOT

JOBS, STEPS, NAMES = 8, 60, ("train/loss", "train/rate", "eval/loss", "ppo/kl", "ppo/reward")

# All that a job does with the store, and no training. They are forked from a process that has imported all but opened
# nothing: so they are eight processes with a connection each, at the cost of one import of MLflow.
CODE = f"""
import multiprocessing, os, sys, traceback
import mlflow, mlflow.store.tracking.sqlalchemy_store
import mlflow.store.model_registry.sqlalchemy_store
from manners import lineage, registry, tracking
from tests.configs import changed

ready = multiprocessing.Barrier({JOBS})
log_input = mlflow.log_input

def say_data(*args, **how):
    mlflow.log_input = log_input
    ready.wait(120)  # all say at once of which data they are, which the store does not know yet
    log_input(*args, **how)

mlflow.log_input = say_data

def job(seed):
    cfg = changed(f"output_dir={{sys.argv[1]}}", f"seed={{seed}}", "tracking.system_metrics=false")
    with lineage.claim(cfg, "digest") as folder:
        with tracking.open_run(cfg, folder, 3, "digest", {{}}, []) as tracker:
            for step in range({STEPS}):
                tracker.log({{name: 100 * seed + step + i / 10 for i, name in enumerate({NAMES})}}, step)
            (folder.path / "model").mkdir()
            (folder.path / "model" / "config.json").write_text("{{}}")
            tracker.artifact(folder.path / "model")
        registry.put(cfg, tracker.client, tracker.run_id, abs(seed - 5))

jobs = []
for seed in range({JOBS}):
    if not (pid := os.fork()):
        try:
            job(seed)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    jobs.append(pid)
sys.exit(sum(bool(os.waitpid(pid, 0)[1]) for pid in jobs))
"""


def test_eight_jobs_at_once_lose_nothing(tmp_path):
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr  # the number of jobs that failed
    assert "tracking server" not in done.stderr  # as it says of what was refused or not sent
    assert done.stdout.count("registered as models:/manners/") == JOBS, done.stdout + done.stderr
    store = sqlite3.connect(tmp_path / "mlflow.db")
    kept = store.execute(
        "select p.value, m.key, m.step, m.value from metrics m join params p on m.run_uuid = p.run_uuid"
        " where p.key = 'seed'"
    ).fetchall()
    said = [
        (str(seed), name, step, 100 * seed + step + i / 10)
        for seed in range(JOBS)
        for step in range(STEPS)
        for i, name in enumerate(NAMES)
    ]
    assert sorted(kept) == sorted(said)
    assert store.execute("select status, count(*) from runs group by status").fetchall() == [("FINISHED", JOBS)]
    versions = store.execute("select version from model_versions").fetchall()
    assert sorted(v for (v,) in versions) == list(range(1, JOBS + 1))
    (champion,) = store.execute(
        "select p.value from registered_model_aliases a join model_versions v on a.version = v.version"
        " join params p on p.run_uuid = v.run_id where a.alias = 'champion' and p.key = 'seed'"
    ).fetchall()
    assert champion == ("5",)  # of loss 0
