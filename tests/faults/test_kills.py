"""kill -9 at random moments: the same command ends in the same weights and the same history.

One kill of each method is in `make test` already, at a moment of its own: tests/test_pipeline.py (SFT),
tests/test_reward_runs.py, tests/test_online.py (PPO) and tests/test_dpo.py.
"""

import itertools
import random
import time
from dataclasses import dataclass, field

import pytest

from manners.runtime import run_dir
from tests.commands import Command, find_run, small_strictbot, train
from tests.faults.processes import METHODS, history, weights

KILLS = 20


@dataclass
class Tally:
    tried: int = 0
    survived: int = 0
    moments: list[str] = field(default_factory=list)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(tmp_path, method):
    command = [*METHODS[method], "method.save_steps=2", *small_strictbot(tmp_path), f"output_dir={tmp_path}"]
    began = time.monotonic()
    train(*command, "run_name=whole")
    lasts = time.monotonic() - began
    whole = find_run(tmp_path, "whole*")
    expected = weights(whole), history(tmp_path / "mlflow.db", whole.name)
    pick, tally = random.Random(f"kill/{method}"), Tally()
    for name in map("cut{}".format, itertools.count()):
        cut = Command(*command, f"run_name={name}")
        time.sleep(pick.uniform(0, lasts))
        if not cut.running():  # too late: it needs another moment
            assert cut.wait() == 0, cut.output
            continue
        cut.kill()
        cut.wait()
        folder = next(iter(tmp_path.glob(f"runs/{name}-*")), None)
        if folder and run_dir.load_state(folder).get("status") == "finished":
            continue  # it was only saying its last words: typed again, the command would run once more
        tally.tried += 1
        tally.moments.append(phase(cut.output, tmp_path, name))
        train(*command, f"run_name={name}")
        folder = find_run(tmp_path, f"{name}-*")
        assert weights(folder) == expected[0], tally
        assert history(tmp_path / "mlflow.db", folder.name) == expected[1], tally
        assert not (folder / "unsent.jsonl").exists()
        tally.survived += 1
        print(f"{method}: {tally.survived} of {tally.tried} survived, killed {tally.moments[-1]}", flush=True)
        if tally.tried == KILLS:
            break
    counts = {m: tally.moments.count(m) for m in dict.fromkeys(tally.moments)}
    print(f"{method}: kill -9 tried {tally.tried}, survived {tally.survived}, lost 0, in {lasts:.1f} s each: {counts}")


def phase(said: str, out, name: str) -> str:
    """Where the kill fell, for the report."""
    folder = next(iter(out.glob(f"runs/{name}-*")), None)
    if folder is None:
        return "before the run began"
    if (folder / "after.json").exists() or (folder / "model").exists():
        return "while the results were written"
    if (folder / "last.ckpt").exists():
        return "in training, after a checkpoint"
    return "in training, before a checkpoint" if (folder / "metrics.jsonl").exists() else "while it began"
