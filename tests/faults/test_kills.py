"""kill -9 at random moments: the same command ends in the same weights and the same metrics.

`make test` has one kill of each method, in tests/pipeline: test_run (SFT), test_ppo_run and test_dpo_run.
"""

import itertools
import random
import time
from dataclasses import dataclass, field

import pytest

from manners.runtime import run_dir
from tests.commands import Command, find_run, small_strictbot, train
from tests.faults.processes import METHODS, metric_history, model_weights

NUM_KILLS = 20


@dataclass
class Tally:
    killed: int = 0
    resumed: int = 0
    moments: list[str] = field(default_factory=list)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_run_killed_at_any_moment_resumes_to_the_same_result(tmp_path, method):
    command = [*METHODS[method], "method.save_steps=2", *small_strictbot(tmp_path), f"output_dir={tmp_path}"]
    started = time.monotonic()
    train(*command, "run_name=full")
    duration = time.monotonic() - started
    full = find_run(tmp_path, "full*")
    expected = model_weights(full), metric_history(tmp_path / "mlflow.db", full.name)
    rng, tally = random.Random(f"kill/{method}"), Tally()
    for name in map("killed{}".format, itertools.count()):
        process = Command(*command, f"run_name={name}")
        time.sleep(rng.uniform(0, duration))
        if not process.running():  # it ended before the kill, which so does not count
            assert process.wait() == 0, process.output
            continue
        process.kill()
        process.wait()
        folder = next(iter(tmp_path.glob(f"runs/{name}-*")), None)
        state = run_dir.load_state(folder) if folder else None
        if state and state.status == "finished":
            continue  # killed after the end: the command would make a second run
        tally.killed += 1
        tally.moments.append(training_phase(tmp_path, name))
        train(*command, f"run_name={name}")
        folder = find_run(tmp_path, f"{name}-*")
        assert model_weights(folder) == expected[0], tally
        assert metric_history(tmp_path / "mlflow.db", folder.name) == expected[1], tally
        assert not (folder / "unsent.jsonl").exists()
        tally.resumed += 1
        print(f"{method}: {tally.resumed} of {tally.killed} resumed, killed {tally.moments[-1]}", flush=True)
        if tally.killed == NUM_KILLS:
            break
    counts = {m: tally.moments.count(m) for m in dict.fromkeys(tally.moments)}
    print(f"{method}: killed {tally.killed}, resumed {tally.resumed}, in {duration:.1f} s each: {counts}")


def training_phase(out, name: str) -> str:
    """When the run was killed, for the report."""
    folder = next(iter(out.glob(f"runs/{name}-*")), None)
    if folder is None:
        return "before the run started"
    if (folder / "after.json").exists() or (folder / "model").exists():
        return "while writing results"
    if (folder / "last.ckpt").exists():
        return "in training, with a checkpoint"
    return "in training, before the first checkpoint" if (folder / "metrics.jsonl").exists() else "while starting"
