"""Commands in processes forked from this one: real to a signal, and without the seconds that imports take."""

import atexit
import os
import runpy
import signal
import sqlite3
import sys
import time
import traceback
from pathlib import Path

from tests.commands import ROOT, SMALL

LITTLE = [*SMALL, "evaluation.test_prompts=2", "evaluation.prompts=1", "evaluation.max_new_tokens=4"]
FIT = [
    *("method.max_steps=12", "method.eval_steps=4", "method.logging_steps=1", "method.max_length=48"),
    *("method.per_device_train_batch_size=2", "method.per_device_eval_batch_size=2"),
    "method.gradient_accumulation_steps=1",
]
ONLINE = [
    *("method.total_episodes=32", "method.batch_size=4", "method.num_mini_batches=2", "method.num_ppo_epochs=1"),
    *("method.max_prompt_length=40", "method.response_length=6", "method.eval_prompts=2", "method.eval_steps=3"),
    *("method.log_samples_steps=1", "policy=none", "reward=none", "~method.rewards.model"),
    "+method.rewards.brevity={_target_: manners.methods.rewards.brevity}",
]
METHODS = {
    "sft": [*LITTLE, *FIT, "method=sft"],
    "reward": [*LITTLE, *FIT, "method=reward", "adapter=none"],
    "ppo": [*LITTLE, *ONLINE, "method=ppo"],
}
OF_THE_CLOCK = ("per_second", "cost/", "system/")


class Command:
    """``python train.py`` with ``overrides``, started at once; ``said`` is what it writes."""

    def __init__(self, *overrides: str, folder: Path):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

        import manners.pipeline  # noqa: F401  imported here, once, for all

        self.file = folder / f"said-{time.monotonic_ns()}"
        self.pid = os.fork()
        if self.pid == 0:
            run(list(overrides), self.file)

    @property
    def said(self) -> str:
        return self.file.read_text()

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def running(self) -> bool:
        """Whether it has not ended yet; ``wait`` still gives its exit code."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self) -> int:
        """The exit code, as a shell has it."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code if code >= 0 else 128 - code

    def until(self, happened) -> None:
        """Return when ``happened()``. Fails where the command ends before."""
        while not happened():
            assert self.running(), self.said
            time.sleep(0.005)


def run(overrides: list[str], file: Path) -> None:
    """What the child does: the whole command, and Python's way out."""
    code: object = 70
    try:
        out = file.open("w", buffering=1)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = out
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.environ["COLUMNS"] = "200"
        sys.argv = [str(ROOT / "train.py"), *overrides]
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        os._exit(code if isinstance(code, int) else 70)


def finish(*overrides: str, folder: Path) -> str:
    """What the command said, which must have ended well."""
    command = Command(*overrides, folder=folder)
    assert command.wait() == 0, command.said
    return command.said


def weights(run: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted((run / "model").glob("*.safetensors"))}


def history(store: Path, run: str) -> dict[tuple[str, int], float]:
    """What a SQLite store holds of a run's metrics, less what the clock decides. No step may be there twice."""
    with sqlite3.connect(store) as base:
        rows = base.execute(
            "select key, step, value from metrics join runs using (run_uuid) where runs.name = ?", (run,)
        ).fetchall()
        states = base.execute("select status from runs where name = ?", (run,)).fetchall()
    assert states == [("FINISHED",)], states
    kept = [((key, step), value) for key, step, value in rows if not any(name in key for name in OF_THE_CLOCK)]
    found = dict(kept)
    assert len(found) == len(kept), "a step is there twice"
    return found
