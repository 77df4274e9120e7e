"""The same command means the same run: it goes on after a kill, starts anew after an end, never runs twice at once."""

import json
import re
import signal
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from manners import lineage
from manners.errors import MannersError
from manners.lineage import claim, fingerprint
from tests.configs import changed, compose

DIGEST = "0123456789abcdef"


@pytest.fixture
def cfg(tmp_path):
    return changed(f"output_dir={tmp_path}")


def finish(cfg):
    with claim(cfg, DIGEST) as folder:
        folder.remember(status="finished")
    return folder.path


@pytest.mark.parametrize(
    "override",
    [
        "seed=2",
        "method.learning_rate=1e-4",
        "adapter.r=8",
        "model.name=openai-community/gpt2",
        "dataset.path=package:polite_helper",
        "dataset.max_rows=100",
        "evaluation.do_sample=true",
        "study_name=other",
        "run_name=mine",
    ],
)
def test_what_shapes_the_result_changes_the_fingerprint(override):
    assert fingerprint(changed(override), DIGEST) != fingerprint(compose(), DIGEST)


@pytest.mark.parametrize(
    "override", ["output_dir=elsewhere", "tracking.uri=http://localhost:1", "resume=false", "tracking.experiment=other"]
)
def test_where_results_are_kept_does_not_change_the_fingerprint(override):
    assert fingerprint(changed(override), DIGEST) == fingerprint(compose(), DIGEST)


def test_other_data_in_the_same_file_changes_the_fingerprint():
    cfg = compose()
    assert fingerprint(cfg, DIGEST) != fingerprint(cfg, "f" * 16)
    assert re.fullmatch("[0-9a-f]{12}", fingerprint(cfg, DIGEST))


def test_an_unfinished_run_is_gone_on_with(cfg):
    with pytest.raises(ZeroDivisionError), claim(cfg, DIGEST) as first:
        first.remember(mlflow_run_id="abc")
        raise ZeroDivisionError
    with claim(cfg, DIGEST) as second:
        assert second.path == first.path
        assert second.state["mlflow_run_id"] == "abc"


def test_a_finished_run_is_left_alone_and_a_new_one_begun(cfg):
    done = finish(cfg)
    with claim(cfg, DIGEST) as folder:
        assert folder.path != done
        assert "best_step" not in folder.state
    assert json.loads((done / "run.json").read_text())["status"] == "finished"


def test_another_config_gets_another_folder(cfg, tmp_path):
    with claim(cfg, DIGEST) as one:
        pass
    with claim(changed(f"output_dir={tmp_path}", "seed=2"), DIGEST) as two:
        assert two.path != one.path
        assert "mlflow_run_id" not in two.state


def test_resume_false_begins_anew_beside_the_unfinished_run(cfg):
    with claim(cfg, DIGEST) as first:
        pass
    cfg.resume = False
    with claim(cfg, DIGEST) as second:
        assert second.path != first.path


def test_two_at_once_get_a_folder_each_and_the_first_is_free_again_afterwards(cfg):
    with claim(cfg, DIGEST) as one, claim(cfg, DIGEST) as two:
        assert one.path != two.path
    with claim(cfg, DIGEST) as again:
        assert again.path == one.path


def test_a_run_that_ends_while_its_lock_is_awaited_is_not_taken_over(cfg, monkeypatch):
    with claim(cfg, DIGEST) as other:
        pass
    real, asked = lineage.locked, []

    def ends_just_now(lock):
        if not asked:
            other.remember(status="finished")
        asked.append(lock)
        return real(lock)

    monkeypatch.setattr(lineage, "locked", ends_just_now)
    with claim(cfg, DIGEST) as folder:
        assert folder.path != other.path


def test_the_lock_of_a_killed_process_is_free(cfg, tmp_path):
    OmegaConf.save(cfg, tmp_path / "cfg.yaml")
    code = f"""
from omegaconf import OmegaConf
from manners.lineage import claim
with claim(OmegaConf.load({str(tmp_path / "cfg.yaml")!r}), {DIGEST!r}) as folder:
    folder.remember(step=7)
    print(folder.path, flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    path = other.stdout.readline().strip()
    with claim(cfg, DIGEST) as beside:
        assert str(beside.path) != path  # it is alive, and holds the lock
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with claim(cfg, DIGEST) as folder:
        assert str(folder.path) == path
        assert folder.state["step"] == 7


def test_an_output_folder_that_cannot_be_written_is_refused_with_advice(cfg, tmp_path):
    cfg.output_dir = str(tmp_path / "file")  # permissions would not stop root; a file in the folder's place does
    (tmp_path / "file").write_text("")
    with pytest.raises(MannersError, match=r"cannot be written .* output_dir=FOLDER"), claim(cfg, DIGEST):
        pass


def test_a_run_name_with_odd_characters_makes_one_plain_folder(cfg, tmp_path):
    cfg.run_name = "my run/../../etc"
    with claim(cfg, DIGEST) as folder:
        assert folder.path.parent == tmp_path / "runs"
        assert re.fullmatch(r"[\w.-]+", folder.path.name)
