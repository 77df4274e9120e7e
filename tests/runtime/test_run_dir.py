"""The same command means the same run: it goes on after a kill, starts anew after an end, never runs twice at once."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf

from manners.errors import MannersError
from manners.runtime import run_dir
from manners.runtime.run_dir import acquire, find_by_name, run_fingerprint, weights_fingerprint
from tests.configs import changed, compose

DIGEST = "0123456789abcdef"


@pytest.fixture
def cfg(tmp_path):
    return changed(f"output_dir={tmp_path}")


def finish(cfg):
    with acquire(cfg, DIGEST) as folder:
        folder.update_state(status="finished")
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
        "experiment_name=other",
        "run_name=mine",
    ],
)
def test_what_shapes_the_result_changes_the_fingerprint(override):
    assert run_fingerprint(changed(override), DIGEST) != run_fingerprint(compose(), DIGEST)


@pytest.mark.parametrize(
    "override", ["output_dir=elsewhere", "tracking.uri=http://localhost:1", "resume=false", "tracking.experiment=other"]
)
def test_where_results_are_kept_does_not_change_the_fingerprint(override):
    assert run_fingerprint(changed(override), DIGEST) == run_fingerprint(compose(), DIGEST)


def test_other_data_in_the_same_file_changes_the_fingerprint():
    cfg = compose()
    assert run_fingerprint(cfg, DIGEST) != run_fingerprint(cfg, "f" * 16)
    assert re.fullmatch("[0-9a-f]{12}", run_fingerprint(cfg, DIGEST))


def test_an_unfinished_run_is_gone_on_with(cfg):
    with pytest.raises(ZeroDivisionError), acquire(cfg, DIGEST) as first:
        first.update_state(mlflow_run_id="abc")
        raise ZeroDivisionError
    with acquire(cfg, DIGEST) as second:
        assert second.path == first.path
        assert second.state["mlflow_run_id"] == "abc"


def test_a_finished_run_is_left_alone_and_a_new_one_begun(cfg):
    done = finish(cfg)
    with acquire(cfg, DIGEST) as folder:
        assert folder.path != done
        assert "best_step" not in folder.state
    assert json.loads((done / "run.json").read_text())["status"] == "finished"


def test_another_config_gets_another_folder(cfg, tmp_path):
    with acquire(cfg, DIGEST) as one:
        pass
    with acquire(changed(f"output_dir={tmp_path}", "seed=2"), DIGEST) as two:
        assert two.path != one.path
        assert "mlflow_run_id" not in two.state


def test_resume_false_begins_anew_beside_the_unfinished_run(cfg):
    with acquire(cfg, DIGEST) as first:
        pass
    cfg.resume = False
    with acquire(cfg, DIGEST) as second:
        assert second.path != first.path


def test_two_at_once_get_a_folder_each_and_the_first_is_free_again_afterwards(cfg):
    with acquire(cfg, DIGEST) as one, acquire(cfg, DIGEST) as two:
        assert one.path != two.path
    with acquire(cfg, DIGEST) as again:
        assert again.path == one.path


def test_a_run_that_ends_while_its_lock_is_awaited_is_not_taken_over(cfg, monkeypatch):
    with acquire(cfg, DIGEST) as other:
        pass
    real, asked = run_dir.try_lock, []

    def ends_just_now(lock):
        if not asked:
            other.update_state(status="finished")
        asked.append(lock)
        return real(lock)

    monkeypatch.setattr(run_dir, "try_lock", ends_just_now)
    with acquire(cfg, DIGEST) as folder:
        assert folder.path != other.path


def test_the_lock_of_a_killed_process_is_free(cfg, tmp_path):
    OmegaConf.save(cfg, tmp_path / "cfg.yaml")
    code = f"""
from omegaconf import OmegaConf
from manners.lineage import claim
with claim(OmegaConf.load({str(tmp_path / "cfg.yaml")!r}), {DIGEST!r}) as folder:
    folder.update_state(step=7)
    print(folder.path, flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    path = other.stdout.readline().strip()
    with acquire(cfg, DIGEST) as beside:
        assert str(beside.path) != path  # it is alive, and holds the lock
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with acquire(cfg, DIGEST) as folder:
        assert str(folder.path) == path
        assert folder.state["step"] == 7


def test_an_output_folder_that_cannot_be_written_is_refused_with_advice(cfg, tmp_path):
    cfg.output_dir = str(tmp_path / "file")  # permissions would not stop root; a file in the folder's place does
    (tmp_path / "file").write_text("")
    with pytest.raises(MannersError, match=r"cannot be written .* output_dir=FOLDER"), acquire(cfg, DIGEST):
        pass


def test_a_run_name_with_odd_characters_makes_one_plain_folder(cfg, tmp_path):
    cfg.run_name = "my run/../../etc"
    with acquire(cfg, DIGEST) as folder:
        assert folder.path.parent == tmp_path / "runs"
        assert re.fullmatch(r"[\w.-]+", folder.path.name)


# --- The stage mark, by which PPO finds the runs that it starts from ---


@pytest.mark.parametrize(
    "override",
    [
        "experiment_name=other",
        "run_name=mine",
        "evaluation.do_sample=true",
        "evaluation.test_prompts=7",
        "output_dir=elsewhere",
        "tracking.experiment=other",
        "resume=false",
    ],
)
def test_what_leaves_the_weights_alone_leaves_the_stage_mark_alone(override):
    assert weights_fingerprint(changed(override), DIGEST) == weights_fingerprint(compose(), DIGEST)


@pytest.mark.parametrize(
    "override",
    [
        "model.name=openai-community/gpt2",
        "model.revision=abc",
        "model.chat_template=plain",
        "dataset.max_rows=100",
        "method.learning_rate=1e-4",
        "adapter.r=8",
        "hardware.precision=bf16",
        "seed=2",
    ],
)
def test_what_shapes_the_weights_changes_the_stage_mark(override):
    assert weights_fingerprint(changed(override), DIGEST) != weights_fingerprint(compose(), DIGEST)


def test_other_data_and_other_inputs_change_both_marks():
    cfg = compose()
    for mark in (run_fingerprint, weights_fingerprint):
        found = [mark(cfg, DIGEST), mark(cfg, "other"), mark(cfg, DIGEST, {"policy": "a"})]
        found += [mark(cfg, DIGEST, {"policy": "b"}), mark(cfg, DIGEST, {"reward": "a"})]
        assert len(set(found)) == 5


def run_of(cfg, model=True, **state):
    """A run's folder as training would leave it."""
    with acquire(cfg, DIGEST) as folder:
        folder.update_state(**state)
    if model:
        (folder.path / "model").mkdir()
        (folder.path / "model" / "config.json").write_text("{}")
    return folder.path


def test_only_a_finished_run_with_its_model_is_found(cfg, tmp_path):
    mark = weights_fingerprint(cfg, DIGEST)
    assert run_dir.find_completed(str(tmp_path / "nowhere"), mark) is None
    run_of(cfg)  # still at work, though a model lies there
    assert run_dir.find_completed(str(tmp_path), mark) is None
    cfg.run_name = "emptied"
    run_of(cfg, model=False, status="finished")
    assert run_dir.find_completed(str(tmp_path), mark) is None
    cfg.run_name = "good"
    path = run_of(cfg, status="finished", mlflow_run_id="f" * 32)
    found = run_dir.find_completed(str(tmp_path), mark)
    assert (found.model, found.mark, found.run, found.run_id) == (path / "model", mark, path.name, "f" * 32)
    assert run_dir.find_completed(str(tmp_path), weights_fingerprint(changed("seed=2"), DIGEST)) is None


def test_a_run_is_given_by_its_folder_its_models_folder_its_name_or_its_mlflow_id(cfg, tmp_path, monkeypatch):
    path = run_of(cfg, status="finished", mlflow_run_id="f" * 32)
    names = [str(path), str(path / "model"), path.name, "f" * 32]
    assert {find_by_name(name, str(tmp_path)) for name in names} == {
        run_dir.find_completed(str(tmp_path), weights_fingerprint(cfg, DIGEST))
    }
    monkeypatch.chdir(path / "model")
    assert find_by_name(".", str(tmp_path)).run == path.name
    assert find_by_name("e" * 32, str(tmp_path)) is None
    assert find_by_name("nothing-here", str(tmp_path)) is None


def test_a_folder_that_is_no_run_goes_by_its_own_name_and_is_marked_by_its_weights(tmp_path):
    for name, weights in (("one", b"1"), ("same", b"1"), ("other", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    one, same, other = (find_by_name(str(tmp_path / name), "out") for name in ("one", "same", "other"))
    assert (one.run, one.run_id, one.config) == ("one", "", None)
    assert one.mark == same.mark != other.mark


def test_a_second_job_waits_for_its_turn_and_then_finds_the_stage_finished(tmp_path):
    """Two real processes, started together: one trains, the other waits, and nothing is trained twice."""
    code = f"""
import json, sys, time
from pathlib import Path
from manners.lineage import finished, turn
out = Path({str(tmp_path)!r})
with turn(str(out), "mark", lambda: print("waits", flush=True)):
    if finished(str(out), "mark"):
        print("found", flush=True)
    else:
        print("trains", flush=True)
        while not (out / "go").exists():
            time.sleep(0.01)
        run = out / "runs" / f"by-{{sys.argv[1]}}"
        (run / "model").mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({{"status": "finished", "stage_mark": "mark"}}))
"""
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(i)], stdout=-1, text=True) for i in range(2)]
    first_words = sorted(job.stdout.readline().strip() for job in jobs)
    assert first_words == ["trains", "waits"]
    time.sleep(0.2)
    assert all(job.poll() is None for job in jobs)  # it waits indeed
    (tmp_path / "go").touch()
    assert sorted(job.communicate(timeout=60)[0].strip() for job in jobs) == ["", "found"]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_the_turn_of_a_killed_job_passes_on(tmp_path):
    code = f"""
from manners.lineage import turn
with turn({str(tmp_path)!r}, "mark", lambda: None):
    print("mine", flush=True)
    input()
"""
    job = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    assert job.stdout.readline().strip() == "mine"
    job.send_signal(signal.SIGKILL)
    job.communicate()
    with run_dir.stage_lock(str(tmp_path), "mark", lambda: pytest.fail("nobody holds it")):
        pass
