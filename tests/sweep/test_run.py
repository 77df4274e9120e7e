"""Sweeps whose jobs are run by a fake launcher: which jobs run, which are not run again, and the report."""

import json
import math
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
from mlflow import MlflowClient

from manners.config import compose as compose_module
from manners.config.schema import OBJECTIVE
from manners.errors import MannersError, Pruned
from manners.runtime.run_dir import STATE_FILE
from manners.sweep import jobs
from manners.sweep.run import run_sweep
from manners.tracking.pruning import pruning_callback
from tests.commands import small_strictbot

METRIC = OBJECTIVE["sft"][0]


class FakeLauncher:
    """Writes the run directory that a job would leave. ``result`` returns its metric, or raises what the job would.

    After ``max_jobs`` jobs it is interrupted.
    """

    def __init__(self, output_dir, result, max_jobs=math.inf):
        self.output_dir, self.result, self.max_jobs, self.commands = Path(output_dir), result, max_jobs, []

    def launch(self, commands, initial_job_idx):
        return [self.run(command) for command in commands]

    def run(self, command):
        of_search = [o for o in command if o.startswith("sweep.")]
        overrides = [o for o in command if not o.startswith("sweep.")]
        if len(self.commands) >= self.max_jobs:
            raise KeyboardInterrupt
        self.commands.append(overrides)
        job = jobs.SweepJob({})
        jobs.resolve_job(job, overrides)
        values = dict(o.split("=", 1) for o in command)
        directory = self.output_dir / "runs" / f"job-{job.fingerprint[:8]}"
        directory.mkdir(parents=True, exist_ok=True)
        state = {"fingerprint": job.fingerprint, "status": "running"}
        (directory / STATE_FILE).write_text(json.dumps(state))
        try:
            metric = self.result(values, compose_module.compose("train", command) if of_search else None)
        except RuntimeError as error:
            return SimpleNamespace(_return_value=error)
        except Pruned:
            state |= {"status": "pruned"}
        else:
            state |= {"status": "finished", "metric": metric, "summary": "so so", "seconds": 60.0}
        (directory / STATE_FILE).write_text(json.dumps(state))
        return SimpleNamespace(_return_value=None)


@pytest.fixture(autouse=True)
def cached_compose(monkeypatch):
    """The same command is composed several times, and that takes longest."""
    compose = compose_module.compose
    cached = cache(lambda name, overrides: compose(name, list(overrides)))
    monkeypatch.setattr(compose_module, "compose", lambda name, overrides: cached(name, tuple(overrides)))


@pytest.fixture
def sweep(tmp_path):
    """Runs ``python train.py -m`` with ``arguments`` on a fake launcher, and returns the launcher."""
    compose_module.register()
    always = [*small_strictbot(tmp_path), f"output_dir={tmp_path / 'out'}"]

    def start(*arguments, result, max_jobs=math.inf):
        launcher = FakeLauncher(tmp_path / "out", result, max_jobs)
        with compose_module.hydra_context():
            command = [*always, *arguments]
            fixed = [o for o in command if "," not in o or "[" in o]
            cfg = hydra.compose("train", fixed, return_hydra_config=True)
            run_sweep(cfg, command, launcher)
        return launcher

    start.out = tmp_path / "out"
    return start


@contextmanager
def exits(code):
    with pytest.raises(SystemExit) as caught:
        yield
    assert caught.value.code == code


def rate_and_seed(values, _):
    """A loss of 1 at a rate of 2e-3, and a tenth more with each seed."""
    return abs(float(values["method.learning_rate"]) - 2e-3) * 1000 + 1 + int(values["seed"]) / 10


GRID = ["method.learning_rate=1e-3,2e-3", "seed=1,2"]


def test_sweep_from_the_latest_run_is_refused(sweep):
    """Each job would start from the one before it."""
    with pytest.raises(MannersError, match=r"policy_from=latest: .* Name the run: policy_from=RUN"):
        sweep("seed=1,2", "policy_from=latest", result=rate_and_seed)


def test_sweep_whose_store_was_lost_gets_a_new_parent_run(sweep):
    first = sweep("seed=1,2", result=lambda *_: 1.0)
    assert len(first.commands) == 2
    again = sweep("seed=1,2", f"tracking.uri=sqlite:///{sweep.out}/other.db", result=lambda *_: 1.0)
    assert again.commands == []  # what has finished is found in the run directories
    (parent,) = MlflowClient(f"sqlite:///{sweep.out}/other.db").search_runs(["1"])
    assert parent.info.status == "FINISHED"


def test_grid_runs_each_job_once_and_logs_the_table(sweep):
    first = sweep(*GRID, result=rate_and_seed)
    assert len(first.commands) == 4
    folder = next((sweep.out / "sweeps").iterdir())
    table = (folder / "sweep.md").read_text().splitlines()
    assert table[2] == f"| method.learning_rate | {METRIC} | ± sd | seeds | min | summary of the best seed |"
    # Means over seeds 1 and 2 of 1.1 and 1.2, and of the same + 1; deviation √(2 · 0.05²) = 0.0707.
    assert table[4:6] == [
        "| 0.002 | 1.15 | 0.0707 | 2 of 2 | 1.0 | so so |",
        "| 0.001 | 2.15 | 0.0707 | 2 of 2 | 1.0 | so so |",
    ]
    assert "method.learning_rate=0.002 seed=1`" in table[7]
    assert (folder / "sweep.png").stat().st_size > 5000
    client = MlflowClient(f"sqlite:///{sweep.out}/mlflow.db")
    (parent,) = client.search_runs(["1"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["manners.sweep"] == folder.name
    assert parent.data.metrics[f"best/{METRIC}"] == pytest.approx(1.15)
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} == {"sweep.md", "sweep.png"}


def test_same_command_runs_only_unfinished_jobs(sweep):
    with pytest.raises(KeyboardInterrupt):
        sweep(*GRID, result=rate_and_seed, max_jobs=3)
    assert len(sweep(*GRID, result=rate_and_seed).commands) == 1
    assert sweep(*GRID, result=rate_and_seed).commands == []
    assert len(sweep(*GRID, "resume=false", result=rate_and_seed).commands) == 4
    # A larger grid runs what the smaller one did not.
    assert len(sweep("method.learning_rate=1e-3,2e-3", "seed=1,2,3", result=rate_and_seed).commands) == 2


def test_failed_jobs_are_listed_and_retried(sweep, capsys):
    def fails(values, cfg):
        if values["seed"] == "1":
            raise RuntimeError("no such luck\nat line 3")
        return rate_and_seed(values, cfg)

    with exits(1):
        sweep(*GRID, result=fails)
    errors = capsys.readouterr().err
    assert errors.count("no such luck") == 2 and "at line 3" not in errors
    assert "2 of 4 jobs failed" in errors
    assert len(sweep(*GRID, result=rate_and_seed).commands) == 2


def test_methods_with_different_metrics_have_no_best(sweep, capsys):
    sweep("method=ppo,rloo", result=lambda *_: 1.0)
    assert "run it again" in capsys.readouterr().out  # both have the reward as metric
    sweep("method=sft,reward", result=lambda *_: 1.0)
    assert "no job is the best" in capsys.readouterr().out  # each has a loss of its own


def test_an_option_that_rescales_the_metric_is_named(sweep, capsys):
    sweep("dataset.max_rows=8,12", result=lambda *_: 1.0)
    assert "dataset.max_rows: eval/loss is not on one scale over these" in capsys.readouterr().out
    sweep("seed=1,2", result=lambda *_: 1.0)
    assert "not on one scale" not in capsys.readouterr().out


def test_values_that_do_not_go_together_are_one_failed_job(sweep, capsys):
    """A batch of 64 is more than the data; each of its two values is valid with the first of the other."""
    commands = []
    grid = ["method.per_device_train_batch_size=4,16", "method.gradient_accumulation_steps=1,4"]
    with exits(1):
        sweep(*grid, result=lambda values, _: commands.append(values) or 1.0)
    assert len(commands) == 3
    assert "larger than the data" in capsys.readouterr().err


def test_max_failures_stops_a_sweep(sweep):
    def fails(values, cfg):
        raise RuntimeError("never")

    with exits(1):
        sweep(*GRID, "sweep.max_failures=1", result=fails)
    assert len(list((sweep.out / "runs").iterdir())) == 2


def test_nan_metric_is_a_failure(sweep, capsys):
    with exits(1):
        sweep("seed=1,2", result=lambda values, cfg: math.nan if values["seed"] == "1" else 1.0)
    assert "its metric is nan" in capsys.readouterr().err


SEARCH = ["sweep=search", "sweep.trials=4", "sweep.pruner=none", "seed=1"]


def bowl(values, _):
    return (math.log10(float(values["method.learning_rate"])) + 3.5) ** 2 + (values["adapter"] == "none")


def test_killed_search_proposes_what_it_would_have_proposed(sweep):
    complete = sweep(*SEARCH, "experiment_name=complete", result=bowl)
    assert len(complete.commands) == 4
    with pytest.raises(KeyboardInterrupt):
        sweep(*SEARCH, result=bowl, max_jobs=2)
    resumed = sweep(*SEARCH, result=bowl)
    table = next((sweep.out / "sweeps").glob("manners-*")) / "sweep.md"
    assert table.read_text().count("| 1 of 1 |") == 4  # with those from before the kill

    def choices(launcher):
        return [[o for o in command if o.startswith(("adapter", "method."))] for command in launcher.commands]

    assert choices(resumed) == choices(complete)[2:]  # the first of them was running when it was killed


def test_search_begins_anew_where_the_data_are_others(sweep, tmp_path):
    assert len(sweep(*SEARCH, result=bowl).commands) == 4
    assert sweep(*SEARCH, result=bowl).commands == []
    [file] = tmp_path.glob("*.jsonl")
    file.write_text(file.read_text().replace("?", "??"))
    assert len(sweep(*SEARCH, result=bowl).commands) == 4


def test_search_keeps_conditions_and_ranges(sweep):
    for command in sweep(*SEARCH, result=bowl).commands:
        values = dict(o.split("=", 1) for o in command)
        assert 1e-5 <= float(values["method.learning_rate"]) <= 5e-3
        assert ("adapter.r" in values) == (values["adapter"] == "lora")
        assert values["adapter"] == "none" or 4 <= int(values["adapter.r"]) <= 64


def test_search_prunes_jobs_that_fall_behind(sweep):
    number = 0

    def each_worse(values, cfg):
        """Each job is worse than the one before, from its first step."""
        nonlocal number
        number += 1
        report = pruning_callback(cfg)
        for step in (10, 20, 30):
            report({"train/loss": 0.0}, step)
            report({METRIC: float(number)}, step)
        return float(number)

    sweep("sweep=search", "sweep.trials=7", result=each_worse)
    folder = next((sweep.out / "sweeps").iterdir())
    states = [json.loads(p.read_text())["status"] for p in (sweep.out / "runs").glob(f"*/{STATE_FILE}")]
    # The median pruner lets five jobs end; the later ones are behind the median of these at once.
    assert sorted(states) == ["finished"] * 5 + ["pruned"] * 2
    assert "| pruned |" in (folder / "sweep.md").read_text()
