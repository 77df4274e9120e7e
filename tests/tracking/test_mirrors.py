"""``report_to``: TensorBoard has each step of a run once, and a mirror that fails costs the run nothing."""

import json
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from manners.config.validate import check_report_to
from manners.errors import MannersError
from manners.tracking import mirrors
from manners.tracking.logger import MLflowLogger
from tests.tracking.test_logger import FakeClient


def config(*names):
    return OmegaConf.create({"report_to": ["mlflow", *names], "tracking": {"experiment": "e"}})


class Recorder:
    """Lightning's logger interface, in a list."""

    def __init__(self):
        self.logged, self.ended = [], []

    def log_metrics(self, metrics, step):
        self.logged.append((step, metrics))

    def finalize(self, status):
        self.ended.append(status)


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setattr(mirrors, "make_logger", lambda *_: made)
    return made


def test_a_resumed_run_has_each_step_once(recorder, tmp_path):
    lines = [{"step": step, "time": 1.0, "loss": float(step)} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    logger = MLflowLogger(FakeClient(), "id", tmp_path, {}, None, mirrors.Mirrors(config("tensorboard"), tmp_path))
    for step in (2, 3):  # the killed run had logged step 2 already
        logger.log({"loss": float(step)}, step)
    logger.close("FINISHED")
    assert recorder.logged == [(1, {"loss": 1.0}), (2, {"loss": 2.0}), (3, {"loss": 3.0})]
    assert recorder.ended == ["success"]


def test_a_mirror_that_fails_costs_one_line(recorder, tmp_path, monkeypatch, capsys):
    def fail(metrics, step):
        raise RuntimeError("no route to http://:secret@localhost/x")

    monkeypatch.setattr(recorder, "log_metrics", fail)
    client = FakeClient()
    logger = MLflowLogger(client, "id", tmp_path, {}, None, mirrors.Mirrors(config("tensorboard"), tmp_path))
    for step in (1, 2):
        logger.log({"loss": 1.0}, step)
    logger.close("FINISHED")
    assert [step for _, step, _ in client.metrics] == [1, 2]
    said = capsys.readouterr().err
    assert said.count("report_to: tensorboard fails") == 1 and "secret" not in said


def test_a_mirror_that_cannot_be_made_costs_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mirrors, "make_logger", lambda *_: 1 / 0)
    mirrors.Mirrors(config("wandb"), tmp_path).log({"loss": 1.0}, 1)
    assert "report_to: wandb fails" in capsys.readouterr().err


def test_tensorboard_files_hold_the_values(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for values in ((1, 2), (1, 2, 3)):  # the second is the resumed run
        lines = [json.dumps({"step": s, "time": 1.0, "train/loss": s / 2}) + "\n" for s in values]
        (tmp_path / "metrics.jsonl").write_text("".join(lines))
        mirrors.Mirrors(config("tensorboard"), tmp_path).close("FINISHED")
    events = EventAccumulator(str(tmp_path / mirrors.TENSORBOARD_DIR)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.5), (2, 1.0), (3, 1.5)]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["mlflow", "tensorbord"], "no 'tensorbord'. Did you mean 'tensorboard'"),
        (["mlflow", "wandb"], r"wandb is an extra, .*pip install -c conf/constraints.txt -e '.\[wandb\]'"),
        ([], "leaves out mlflow"),
    ],
)
def test_what_cannot_work_is_said_at_the_start(names, says, monkeypatch):
    found = {"mlflow": SimpleNamespace(), "tensorboard": SimpleNamespace()}
    monkeypatch.setattr("manners.config.validate.find_spec", found.get)
    with pytest.raises(MannersError, match=says):
        check_report_to(names)
