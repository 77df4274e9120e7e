"""Small training commands, run in a process of their own or in this one, and helpers to read their results.

Importing all that a command needs takes about seven seconds. Python's fork server imports it once, and each command is
forked from it: a real process that can be killed, and that shares no thread, connection or patch with the tests.
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
from tests.configs import tiny

ROOT = paths.ROOT
PRELOAD = ["manners.pipeline.run", "mlflow.store.tracking.sqlalchemy_store", "tests.commands"]
ROWS = {"train": 24, "validation": 6, "test": 8}
SMALL = [
    "evaluation.test_prompts=4",
    "evaluation.prompts=2",
    "evaluation.max_new_tokens=6",
    "tracking.system_metrics=false",
]
SHORT_STAGE = "'method.max_steps=4','method.per_device_train_batch_size=4'"  # for *_run_overrides
SMALL_RL = [
    *SMALL,
    f"policy_run_overrides=[{SHORT_STAGE}]",
    f"reward_run_overrides=['adapter=none',{SHORT_STAGE}]",
    "method.batch_size=8",
    "method.num_ppo_epochs=2",
    "method.num_mini_batches=2",
    "method.response_length=6",
    "method.num_eval_prompts=4",
    "method.min_sanity_accuracy=0",  # a reward model of four steps passes no check
]


def small_strictbot(folder: Path) -> list[str]:
    """Options for a dataset of a few strictbot rows, written to ``folder``: reading all rows would take longer."""
    rows = (CORPORA / "strictbot_tiny" / "generated.jsonl").read_text().splitlines()
    few = [r for split, count in ROWS.items() for r in [r for r in rows if f'"split": "{split}"' in r][:count]]
    (folder / "few.jsonl").write_text("\n".join(few) + "\n")
    return ["dataset=jsonl", f"dataset.path={folder / 'few.jsonl'}", "dataset.style_judge=rules"]


@cache
def fork_server() -> ForkServerContext:
    """The fork server, started once, with an environment in which libraries print plain text in wide lines."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with patch.dict(os.environ, COLUMNS="200", TERM="dumb"):
        forkserver.ensure_running()
    return context


class Command:
    """``python train.py`` (or another script) with ``overrides``, started at once; ``env`` are its variables."""

    def __init__(self, *overrides: str, script: Path = ROOT / "train.py", cwd: Path = ROOT, **env: str):
        copy_store(overrides)
        self.file = tempfile.NamedTemporaryFile("r")  # noqa: SIM115  deleted with the command
        given = tiny(overrides) if script.name == "train.py" else overrides
        argv, env = [str(script), *given], os.environ | {"COLUMNS": "200"} | env
        args = (argv, str(cwd), env, Path(self.file.name))
        # A daemon, so that it ends with the tests where they fail.
        self.process = fork_server().Process(target=run_script, args=args, daemon=True)
        self.process.start()

    @property
    def output(self) -> str:
        self.file.seek(0)
        return self.file.read()

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        assert self.process.pid
        os.kill(self.process.pid, signal_number)

    def running(self) -> bool:
        return self.process.is_alive()

    def wait(self, timeout: float = 300) -> int:
        """The exit code, as a shell reports it."""
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            self.kill()
            raise AssertionError(f"the command did not end within {timeout} s: {self.output}")
        return code if code >= 0 else 128 - code

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Return as soon as ``condition()`` is true. Fails where the command ends before."""
        while not condition():
            assert self.running(), self.output
            time.sleep(0.005)


def run_script(argv: list[str], cwd: str, env: dict[str, str], file: Path) -> None:
    """Run in the forked process: the same as ``python *argv``, up to the exit handlers. ``file`` gets the output."""
    out = file.open("w", buffering=1)
    for descriptor in (1, 2):
        os.dup2(out.fileno(), descriptor)
    sys.stdout = sys.stderr = out
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore Ctrl-C
    os.chdir(cwd)
    home, old_home = env.get("HF_HOME"), os.environ.get("HF_HOME")
    os.environ.update(env)
    if home and home != old_home:
        from tests import hub_cache

        hub_cache.use(Path(home), pytest.MonkeyPatch())
    sys.path[:0] = [str(Path(argv[0]).parent), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def copy_store(overrides: Sequence[str]) -> None:
    """Put an empty MLflow store where the command would create one."""
    options = dict(o.split("=", 1) for o in overrides if "=" in o)
    if "output_dir" in options and not options.keys() & {"tracking.uri", "plan", "preview"}:
        with suppress(OSError):  # the command itself reports it
            stores.copy_empty_store(Path(options["output_dir"]) / "mlflow.db")


def train(*overrides: str, **kwargs) -> str:
    """The output of a command, which must succeed."""
    command = Command(*overrides, **kwargs)
    assert command.wait() == 0, command.output
    return command.output


def run_two_processes(script: Path, *overrides: str) -> None:
    """Run ``script`` in two processes, with the environment variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    commands = [Command(*overrides, script=script, RANK=rank, LOCAL_RANK=rank, **env) for rank in ("0", "1")]
    assert [command.wait() for command in commands] == [0, 0], "\n".join(command.output for command in commands)


def train_with_launcher(*overrides: str, launcher: Sequence[str]) -> str:
    """The output of a training command in several processes that ``launcher`` starts: torchrun or accelerate."""
    copy_store(overrides)
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *tiny(overrides)]
    process = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def kill_at_step(command: Command, folder: Path, pattern: str, metric: str, step: int) -> Path:
    """kill -9 as soon as ``metric`` is logged at ``step`` and there is a checkpoint; returns the run directory."""

    def step_reached() -> bool:
        files = [f for f in folder.glob(f"runs/{pattern}/metrics.jsonl") if (f.parent / "last.ckpt").exists()]
        return any(r["step"] >= step and metric in r for f in files for r in read_records(f))

    command.wait_until(step_reached)
    command.kill()
    assert command.wait() == 128 + signal.SIGKILL, command.output
    run = find_run(folder, pattern)
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    return run


def read_records(file: Path) -> list[dict]:
    """The complete lines of a JSON Lines file."""
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def train_in_process(*overrides: str) -> float | None:
    """Run ``python train.py`` with ``overrides`` in this process; returns the metric that a sweep optimizes."""
    from train import train

    register()
    return train(plan_run(tiny(overrides)))


def find_run(out: Path, pattern: str) -> Path:
    """The one run directory whose name matches ``pattern``."""
    (folder,) = out.glob(f"runs/{pattern}")
    return folder


def mlflow_runs(out: Path) -> tuple:
    """An MLflow client, and the runs in the store by name."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{out}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("manners").experiment_id])
    return client, {run.info.run_name: run for run in runs}


def artifact_paths(client, run_id: str, folder: str = "") -> set[str]:
    """Every artifact of an MLflow run, in folders too."""
    files = client.list_artifacts(run_id, folder)
    return {f.path for f in files} | {p for f in files if f.is_dir for p in artifact_paths(client, run_id, f.path)}
