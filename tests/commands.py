"""Commands as small as can be, typed in a process of their own or run in this one, and what they leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hydra
from hydra.core.plugins import Plugins

from manners import checks, composing, config
from manners.chain import Stage
from manners.data.source import CORPORA
from tests import stores

ROOT = composing.ROOT
ROWS = {"train": 24, "validation": 6, "test": 8}
SMALL = [
    "evaluation.test_prompts=6",
    "evaluation.prompts=3",
    "evaluation.max_new_tokens=12",
    "tracking.system_metrics=false",
]
ONLINE = [
    *SMALL,
    "policy_overrides=['method.max_steps=4']",
    "reward_overrides=['adapter=none','method.max_steps=4']",
    "method.batch_size=8",
    "method.num_ppo_epochs=2",
    "method.num_mini_batches=2",
    "method.response_length=12",
    "method.eval_prompts=4",
    "method.sanity_floor=0",  # such a reward model sees through nothing
]


def strictbot(folder: Path) -> list[str]:
    """The first rows of each split, in a file of their own: reading all would take longer than training on these."""
    rows = (CORPORA / "strictbot" / "generated.jsonl").read_text().splitlines()
    kept = [r for split, count in ROWS.items() for r in [r for r in rows if f'"split": "{split}"' in r][:count]]
    (folder / "few.jsonl").write_text("\n".join(kept) + "\n")
    views = "dataset.views=[chat,scored,pairs,prompt]"
    return ["dataset=jsonl", f"dataset.path={folder / 'few.jsonl'}", views, "dataset.judge=strictbot"]


def start(*overrides: str, cwd: Path = ROOT, launcher: tuple[str, ...] = (), **env: str) -> subprocess.Popen:
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *overrides]
    said = dict(o.split("=", 1) for o in overrides if "=" in o)
    if "output_dir" in said and "tracking.uri" not in said and said.get("lineage") != "show":
        stores.put(Path(said["output_dir"]) / "mlflow.db")
    env = os.environ | {"COLUMNS": "200"} | env
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train(*overrides: str, **how) -> str:
    """What the finished command said."""
    run = start(*overrides, **how)
    said = run.communicate(timeout=300)[0]
    assert run.returncode == 0, said
    return said


def kill_once(run: subprocess.Popen, folder: Path, pattern: str, metric: str, step: int) -> Path:
    """kill -9 as soon as ``metric`` of ``step`` is written and there is a checkpoint; the run's folder."""
    deadline = time.time() + 200
    while time.time() < deadline and run.poll() is None:
        for file in folder.glob(f"runs/{pattern}/metrics.jsonl"):
            if (file.parent / "last.ckpt").exists() and any(r["step"] >= step and metric in r for r in records(file)):
                os.kill(run.pid, signal.SIGKILL)
                run.communicate()
                assert json.loads((file.parent / "run.json").read_text())["status"] == "running"
                return file.parent
        time.sleep(0.01)
    raise AssertionError(f"it was not killed in time: {run.communicate()[0]}")


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def here(*overrides: str) -> float | None:
    """The same in this process, which has imported all that it needs."""
    from manners import pipeline

    config.register()
    Plugins.instance().register(composing.Recipes)
    with hydra.initialize_config_dir(str(composing.CONF), version_base="1.3"):
        cfg = composing.compose("train", list(overrides))
        checks.check(cfg)
        needs = composing.needs(cfg, list(overrides))
    return pipeline.run(Stage(cfg, list(overrides)), needs)


def only(out: Path, pattern: str) -> Path:
    (folder,) = out.glob(f"runs/{pattern}")
    return folder


def tracked(out: Path) -> tuple:
    """MLflow's client, and its runs by name."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{out}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("manners").experiment_id])
    return client, {run.info.run_name: run for run in runs}


def artifacts(client, run_id: str, folder: str = "") -> set[str]:
    found = client.list_artifacts(run_id, folder)
    return {f.path for f in found} | {p for f in found if f.is_dir for p in artifacts(client, run_id, f.path)}
