"""Sweeps whose jobs are run by a launcher that only pretends: what is run, what is not run again, what is told."""

import json
import math
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
from hydra.core.plugins import Plugins
from mlflow import MlflowClient

from manners.config import compose as composing
from manners.config import schema
from manners.errors import Pruned
from manners.runtime.paths import CONF
from manners.sweep import jobs
from manners.sweep.run import run_sweep
from manners.sweep.search import pruning_callback
from tests.commands import strictbot

METRIC = "eval/loss"


class Pretends:
    """Writes the run folder that a job would leave. ``result`` gives its metric, or raises what the job would."""

    def __init__(self, output_dir, result, at_most=math.inf):
        self.output_dir, self.result, self.left, self.ran = Path(output_dir), result, at_most, []

    def launch(self, commands, initial_job_idx):
        return [self.one(command) for command in commands]

    def one(self, command):
        own = [o for o in command if o.startswith("sweep.")]
        typed = [o for o in command if not o.startswith("sweep.")]
        if self.left <= 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.ran.append(typed)
        job = jobs.SweepJob({})
        jobs.resolve_job(job, typed)
        values = dict(o.split("=", 1) for o in command)
        folder = self.output_dir / "runs" / f"job-{job.fingerprint[:8]}"
        folder.mkdir(parents=True, exist_ok=True)
        state = {"fingerprint": job.fingerprint, "status": "running"}
        (folder / "run.json").write_text(json.dumps(state))
        try:
            metric = self.result(values, composing.compose("train", command) if own else None)
        except RuntimeError as error:
            return SimpleNamespace(_return_value=error)
        except Pruned:
            state |= {"status": "pruned"}
        else:
            state |= {"status": "finished", "metric": metric, "summary": "so so", "seconds": 60.0}
        (folder / "run.json").write_text(json.dumps(state))
        return SimpleNamespace(_return_value=None)


@pytest.fixture(autouse=True)
def composed_once(monkeypatch):
    """The same config is looked at some times; to compose it takes longest."""
    monkeypatch.setattr(composing, "compose", cached(composing.compose))


def cached(compose):
    once = cache(lambda name, overrides: compose(name, list(overrides)))
    return lambda name, overrides: once(name, tuple(overrides))


@pytest.fixture
def sweep(tmp_path):
    """Starts ``python train.py -m`` with ``arguments`` and a launcher that pretends; gives back the launcher."""
    schema.register_schemas()
    Plugins.instance().register(composing.UserConfigDir)
    always = [*strictbot(tmp_path), f"output_dir={tmp_path / 'out'}"]

    def start(*arguments, result, at_most=math.inf):
        launcher = Pretends(tmp_path / "out", result, at_most)
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            typed = [*always, *arguments]
            shared = [o for o in typed if "," not in o or "[" in o]
            cfg = hydra.compose("train", shared, return_hydra_config=True)
            run_sweep(cfg, typed, launcher)
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


def test_a_grid_runs_each_job_once_and_the_parent_carries_the_table(sweep):
    first = sweep(*GRID, result=rate_and_seed)
    assert len(first.ran) == 4
    folder = next((sweep.out / "sweeps").iterdir())
    table = (folder / "sweep.md").read_text().splitlines()
    assert table[2] == "| method.learning_rate | eval/loss | ± sd | seeds | min | the best of them |"
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
    assert parent.data.metrics["best/eval/loss"] == pytest.approx(1.15)
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} == {"sweep.md", "sweep.png"}


def test_a_config_with_other_values_is_what_composing_gives(composed_once):
    schema.register_schemas()
    Plugins.instance().register(composing.UserConfigDir)
    keys = ["seed", "method.learning_rate", "method.packing", "run_name", "method.lr_scheduler_type"]
    one = [f"{k}={v}" for k, v in zip(keys, ["1", "1e-3", "true", "a", "linear"], strict=True)]
    other = [f"{k}={v}" for k, v in zip(keys, ["2", "3e-5", "false", "'b, c'", "constant"], strict=True)]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        first = composing.compose("train", ["debug=quick", *one])
        before = first.copy()
        assert composing.with_values(first, other) == composing.compose("train", ["debug=quick", *other])
        assert first == before
        assert composing.with_values(first, ["method=reward"]) is None  # brings much more than a value
        assert composing.with_values(first, ["quick=false"]) is None  # what it made of other values would stay
        assert composing.with_values(first, ["seed=tomorrow"]) is None  # refused: composing says why
        assert composing.with_values(first, ["adapter.target_modules=[q_proj]"]) is None


def test_the_same_command_runs_only_what_did_not_finish(sweep):
    with pytest.raises(KeyboardInterrupt):
        sweep(*GRID, result=rate_and_seed, at_most=3)
    assert len(sweep(*GRID, result=rate_and_seed).ran) == 1
    assert sweep(*GRID, result=rate_and_seed).ran == []
    assert len(sweep(*GRID, "resume=false", result=rate_and_seed).ran) == 4
    # A larger grid runs what the smaller one did not.
    assert len(sweep("method.learning_rate=1e-3,2e-3", "seed=1,2,3", result=rate_and_seed).ran) == 2


def test_failed_jobs_are_listed_and_tried_again_and_the_others_go_on(sweep, capsys):
    def fails(values, cfg):
        if values["seed"] == "1":
            raise RuntimeError("no such luck\nat line 3")
        return rate_and_seed(values, cfg)

    with exits(1):
        sweep(*GRID, result=fails)
    said = capsys.readouterr().err
    assert said.count("no such luck") == 2 and "at line 3" not in said
    assert "2 of 4 jobs failed" in said
    assert len(sweep(*GRID, result=rate_and_seed).ran) == 2


def test_methods_that_are_measured_differently_have_no_best(sweep, capsys):
    sweep("method=ppo,rloo", result=lambda *_: 1.0)
    assert "run it again" in capsys.readouterr().out  # both by the reward
    sweep("method=sft,reward", result=lambda *_: 1.0)
    assert "none is the best" in capsys.readouterr().out  # both by a loss, each by one of its own


def test_values_that_do_not_go_together_are_one_failed_job(sweep, capsys):
    """A batch of 64 is more than the data, and accumulation makes it so; each goes with the other's first value."""
    with exits(1):
        launcher = sweep(
            "method.per_device_train_batch_size=4,16", "method.gradient_accumulation_steps=1,4", result=lambda *_: 1.0
        )
        assert len(launcher.ran) == 3
    assert "larger than the data" in capsys.readouterr().err


def test_max_failures_stops_a_sweep(sweep):
    def fails(values, cfg):
        raise RuntimeError("never")

    with exits(1):
        launcher = sweep(*GRID, "sweep.max_failures=1", result=fails)
        assert len(launcher.ran) == 2
    assert len(list((sweep.out / "runs").iterdir())) == 2


def test_a_metric_that_is_no_number_is_a_failure(sweep, capsys):
    with exits(1):
        sweep("seed=1,2", result=lambda values, cfg: math.nan if values["seed"] == "1" else 1.0)
    assert "its metric is nan" in capsys.readouterr().err


SEARCH = ["sweep=search", "sweep.trials=4", "sweep.pruner=none", "seed=1"]


def bowl(values, _):
    return (math.log10(float(values["method.learning_rate"])) + 3.5) ** 2 + (values["adapter"] == "none")


def test_a_search_that_was_killed_proposes_what_it_would_have_proposed(sweep, tmp_path):
    whole = sweep(*SEARCH, "experiment_name=whole", result=bowl)
    assert len(whole.ran) == 4
    with pytest.raises(KeyboardInterrupt):
        sweep(*SEARCH, result=bowl, at_most=2)
    rest = sweep(*SEARCH, result=bowl)
    table = next((sweep.out / "sweeps").glob("manners-*")) / "sweep.md"
    assert table.read_text().count("| 1 of 1 |") == 4  # those of before the kill, too
    varied = [[o for o in job if o.startswith(("adapter", "method."))] for job in whole.ran]
    again = [[o for o in job if o.startswith(("adapter", "method."))] for job in rest.ran]
    assert again[0] == varied[2]  # at work when it was killed
    assert again == varied[2:]


def test_a_search_keeps_conditions_and_ranges(sweep):
    for job in sweep(*SEARCH, result=bowl).ran:
        values = dict(o.split("=", 1) for o in job)
        assert 1e-5 <= float(values["method.learning_rate"]) <= 5e-3
        assert ("adapter.r" in values) == (values["adapter"] == "lora")
        assert values["adapter"] == "none" or 4 <= int(values["adapter.r"]) <= 64


def test_a_search_gives_up_jobs_that_fall_behind(sweep):
    def slow(values, cfg):
        """Each later job is worse from its first step."""
        slow.jobs += 1
        watch = pruning_callback(cfg)
        for step in (10, 20, 30):
            watch({"train/loss": 0.0}, step)
            watch({METRIC: float(slow.jobs)}, step)
        return float(slow.jobs)

    slow.jobs = 0
    sweep("sweep=search", "sweep.trials=7", result=slow)
    folder = next((sweep.out / "sweeps").iterdir())
    states = [json.loads(p.read_text())["status"] for p in (sweep.out / "runs").glob("*/run.json")]
    # The median pruner lets five jobs end; the later ones are behind the median of these at once.
    assert sorted(states) == ["finished"] * 5 + ["pruned"] * 2
    assert "| pruned |" in (folder / "sweep.md").read_text()
