"""Commands as small as can be, typed in a process of their own or run in this one, and what they leave behind.

To import all that a command needs takes some seven seconds. Python's fork server does it once; each command is forked
from it, and so shares no thread, connection, device or patch with these tests. It is real to a signal.
"""

import atexit
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest.mock import patch

import pytest

from manners.config.compose import plan_run, register
from manners.data.sources import CORPORA
from manners.runtime import paths
from tests import stores

ROOT = paths.ROOT
HEAVY = ["manners.pipeline.run", "mlflow.store.tracking.sqlalchemy_store", "tests.commands"]
ROWS = {"train": 24, "validation": 6, "test": 8}
SMALL = [
    "evaluation.test_prompts=4",
    "evaluation.prompts=2",
    "evaluation.max_new_tokens=6",
    "tracking.system_metrics=false",
]
LIGHT = "'method.max_steps=4','method.per_device_train_batch_size=4'"  # of a stage
ONLINE = [
    *SMALL,
    f"policy_run_overrides=[{LIGHT}]",
    f"reward_run_overrides=['adapter=none',{LIGHT}]",
    "method.batch_size=8",
    "method.num_ppo_epochs=2",
    "method.num_mini_batches=2",
    "method.response_length=6",
    "method.num_eval_prompts=4",
    "method.min_sanity_accuracy=0",  # such a reward model sees through nothing
]


def strictbot(folder: Path) -> list[str]:
    """The first rows of each split, in a file of their own: reading all would take longer than training on these."""
    rows = (CORPORA / "strictbot" / "generated.jsonl").read_text().splitlines()
    kept = [r for split, count in ROWS.items() for r in [r for r in rows if f'"split": "{split}"' in r][:count]]
    (folder / "few.jsonl").write_text("\n".join(kept) + "\n")
    views = "dataset.sample_types=[conversation,scored,preference,prompt]"
    return ["dataset=jsonl", f"dataset.path={folder / 'few.jsonl'}", views, "dataset.style_judge=strictbot"]


@cache
def server() -> ForkServerContext:
    """Started by the first command, with an environment in which libraries print plainly and in wide lines."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    with patch.dict(os.environ, COLUMNS="200", TERM="dumb"):
        forkserver.ensure_running()
    return context


class Command:
    """``python train.py`` (or another script) with ``words``, started at once; ``said`` is what it writes."""

    def __init__(self, *words: str, script: Path = ROOT / "train.py", cwd: Path = ROOT, **env: str):
        put_store(words)
        self.file = tempfile.NamedTemporaryFile("r")  # noqa: SIM115  gone when the command is
        typed, env = [str(script), *words], os.environ | {"COLUMNS": "200"} | env
        how = (typed, str(cwd), env, Path(self.file.name))
        self.process = server().Process(target=run, args=how, daemon=True)  # it ends with the tests, should they fail
        self.process.start()

    @property
    def said(self) -> str:
        self.file.seek(0)
        return self.file.read()

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def running(self) -> bool:
        return self.process.is_alive()

    def wait(self, at_most: float = 300) -> int:
        """The exit code, as a shell has it."""
        self.process.join(at_most)
        code = self.process.exitcode
        if code is None:
            self.kill()
            raise AssertionError(f"it did not end in {at_most} s: {self.said}")
        return code if code >= 0 else 128 - code

    def until(self, happened: Callable[[], object]) -> None:
        """Return when ``happened()``. Fails where the command ends before."""
        while not happened():
            assert self.running(), self.said
            time.sleep(0.005)


def run(typed: list[str], cwd: str, env: dict[str, str], file: Path) -> None:
    """What the forked process does: what a fresh interpreter would with ``typed``, up to Python's own way out."""
    out = file.open("w", buffering=1)
    for number in (1, 2):
        os.dup2(out.fileno(), number)
    sys.stdout = sys.stderr = out
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the shell that started the tests makes of it
    os.chdir(cwd)
    home, before = env.get("HF_HOME"), os.environ.get("HF_HOME")
    os.environ.update(env)  # over what the imports have set
    if home and home != before:
        from tests import hub_cache

        hub_cache.use(Path(home), pytest.MonkeyPatch())
    sys.path[:0] = [str(Path(typed[0]).parent), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = typed
    try:
        runpy.run_path(typed[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def put_store(overrides: Sequence[str]) -> None:
    said = dict(o.split("=", 1) for o in overrides if "=" in o)
    if "output_dir" in said and not said.keys() & {"tracking.uri", "plan", "preview"}:
        with suppress(OSError):  # of which the command itself is to tell
            stores.copy_empty_store(Path(said["output_dir"]) / "mlflow.db")


def train(*overrides: str, **how) -> str:
    """What the command said, which must have ended well."""
    command = Command(*overrides, **how)
    assert command.wait() == 0, command.said
    return command.said


def two(script: Path, *words: str) -> None:
    """``script`` by two processes, whose environment tells them what torchrun's would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    both = [Command(*words, script=script, RANK=rank, LOCAL_RANK=rank, **env) for rank in ("0", "1")]
    assert [one.wait() for one in both] == [0, 0], "\n".join(one.said for one in both)


def launched(*overrides: str, launcher: Sequence[str]) -> str:
    """The same by several processes, which ``launcher`` starts: each an interpreter of its own."""
    put_store(overrides)
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *overrides]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    return done.stdout


def kill_once(command: Command, folder: Path, pattern: str, metric: str, step: int) -> Path:
    """kill -9 as soon as ``metric`` of ``step`` is written and there is a checkpoint; the run's folder."""

    def come_so_far() -> bool:
        files = [f for f in folder.glob(f"runs/{pattern}/metrics.jsonl") if (f.parent / "last.ckpt").exists()]
        return any(r["step"] >= step and metric in r for f in files for r in records(f))

    command.until(come_so_far)
    command.kill()
    assert command.wait() == 128 + signal.SIGKILL, command.said
    cut = only(folder, pattern)
    assert json.loads((cut / "run.json").read_text())["status"] == "running"
    return cut


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def here(*overrides: str) -> float | None:
    """The same in this process, which has imported all that it needs."""
    from manners.pipeline import run as pipeline

    register()
    return pipeline.run(plan_run(list(overrides)))


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
