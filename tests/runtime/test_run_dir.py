"""The same command means the same run: resumed after a kill, started anew after an end, never run twice at once."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf

from manners.errors import MannersError
from manners.runtime import run_dir
from manners.runtime.model_files import folder_digest
from manners.runtime.run_dir import RunState, acquire, find_by_name, run_fingerprint, weights_fingerprint
from tests.configs import changed, compose

DIGEST = {"data": "0123456789abcdef"}


@pytest.fixture
def cfg(tmp_path):
    return changed(f"output_dir={tmp_path}")


def finish(cfg):
    with acquire(cfg, DIGEST) as directory:
        directory.update_state(status="finished", best_step=3)
    return directory.path


@pytest.mark.parametrize(
    "override",
    [
        "seed=2",
        "method.learning_rate=1e-4",
        "adapter.r=8",
        "model.name=openai-community/gpt2",
        "adapter.use_dora=true",
        "adapter.init_lora_weights=gaussian",
        "dataset.path=package:polite_helper",
        "dataset.max_rows=100",
        "evaluation.do_sample=true",
        "experiment_name=other",
        "run_name=mine",
    ],
)
def test_run_fingerprint_depends_on_what_shapes_the_result(override):
    assert run_fingerprint(changed(override), DIGEST) != run_fingerprint(compose(), DIGEST)


@pytest.mark.parametrize(
    "override",
    [
        "output_dir=elsewhere",
        "tracking.uri=http://localhost:1",
        "resume=false",
        "tracking.experiment=other",
        "hardware.microbatch_size=2",
    ],
)
def test_run_fingerprint_ignores_what_does_not_shape_the_result(override):
    assert run_fingerprint(changed(override), DIGEST) == run_fingerprint(compose(), DIGEST)


@pytest.mark.parametrize("fingerprint", [run_fingerprint, weights_fingerprint])
def test_options_that_came_later_keep_old_fingerprints(fingerprint):
    met = set()
    for method in ("sft", "reward"):
        before = OmegaConf.create(OmegaConf.to_container(compose(f"method={method}")))
        for group, names in run_dir.ADDED.items():
            for name in names.keys() & before[group].keys():
                met.add((group, name))
                assert before[group].pop(name) == names[name]
        assert fingerprint(before, DIGEST) == fingerprint(compose(f"method={method}"), DIGEST)
    assert met == {(group, name) for group, names in run_dir.ADDED.items() for name in names}


def test_run_fingerprint_depends_on_the_data():
    cfg = compose()
    assert run_fingerprint(cfg, DIGEST) != run_fingerprint(cfg, {"data": "f" * 16})
    assert re.fullmatch("[0-9a-f]{12}", run_fingerprint(cfg, DIGEST))


def test_acquire_resumes_an_unfinished_run(cfg):
    with pytest.raises(ZeroDivisionError), acquire(cfg, DIGEST) as first:
        first.update_state(mlflow_run_id="abc")
        raise ZeroDivisionError
    with acquire(cfg, DIGEST) as second:
        assert (second.path, second.is_rerun) == (first.path, False)
        assert second.state.mlflow_run_id == "abc"


def test_acquire_leaves_a_finished_run_alone(cfg):
    finished = finish(cfg)
    with acquire(cfg, DIGEST) as directory:
        assert directory.path != finished and directory.is_rerun
        assert directory.state.best_step == 0
    assert json.loads((finished / "run.json").read_text())["status"] == "finished"


def test_acquire_gives_another_config_another_directory(cfg, tmp_path):
    with acquire(cfg, DIGEST) as one:
        one.update_state(mlflow_run_id="abc")
    with acquire(changed(f"output_dir={tmp_path}", "seed=2"), DIGEST) as two:
        assert two.path != one.path
        assert two.state.mlflow_run_id == ""


def test_acquire_starts_anew_with_resume_false(cfg):
    with acquire(cfg, DIGEST) as first:
        pass
    cfg.resume = False
    with acquire(cfg, DIGEST) as second:
        assert second.path != first.path


def test_concurrent_runs_get_a_directory_each(cfg):
    with acquire(cfg, DIGEST) as one, acquire(cfg, DIGEST) as two:
        assert one.path != two.path
    with acquire(cfg, DIGEST) as again:
        assert again.path == one.path  # its lock is released


def test_acquire_skips_a_run_that_finishes_while_it_locks(cfg, monkeypatch):
    with acquire(cfg, DIGEST) as other:
        pass
    try_lock, locks = run_dir.try_lock, []

    def finishes_first(lock):
        if not locks:
            other.update_state(status="finished")
        locks.append(lock)
        return try_lock(lock)

    monkeypatch.setattr(run_dir, "try_lock", finishes_first)
    with acquire(cfg, DIGEST) as directory:
        assert directory.path != other.path


def test_lock_of_a_killed_process_is_released(cfg, tmp_path):
    OmegaConf.save(cfg, tmp_path / "cfg.yaml")
    code = f"""
from omegaconf import OmegaConf
from manners.runtime.run_dir import acquire
with acquire(OmegaConf.load({str(tmp_path / "cfg.yaml")!r}), {DIGEST!r}) as directory:
    directory.update_state(best_step=7)
    print(directory.path, flush=True)
    input()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    path = process.stdout.readline().strip()
    with acquire(cfg, DIGEST) as other:
        assert str(other.path) != path  # the process is alive, and holds the lock
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with acquire(cfg, DIGEST) as directory:
        assert str(directory.path) == path
        assert directory.state.best_step == 7


def test_unwritable_output_dir_is_refused_with_advice(cfg, tmp_path):
    cfg.output_dir = str(tmp_path / "file")  # permissions would not stop root; a file in place of the directory does
    (tmp_path / "file").write_text("")
    with pytest.raises(MannersError, match=r"cannot be written .* output_dir=FOLDER"), acquire(cfg, DIGEST):
        pass


def test_run_name_with_special_characters_is_one_plain_directory(cfg, tmp_path):
    cfg.run_name = "my run/../../etc"
    with acquire(cfg, DIGEST) as directory:
        assert directory.path.parent == tmp_path / "runs"
        assert re.fullmatch(r"[\w.-]+", directory.path.name)


def test_run_state_survives_unknown_fields_but_not_damage(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "finished", "field_of_a_later_version": 1}')
    assert run_dir.load_state(tmp_path) == RunState(status="finished")
    for damaged in ('{"status": ', "[1]", '{"status": 3}', '{"fingerprint": null}'):
        (tmp_path / "run.json").write_text(damaged)
        with pytest.raises(MannersError, match=r"run\.json is damaged"):
            run_dir.load_state(tmp_path)
    assert run_dir.load_state(tmp_path / "nothing") is None


# --- The weights fingerprint, by which PPO finds the runs that it starts from ---


@pytest.mark.parametrize(
    "override",
    [
        "experiment_name=other",
        "run_name=mine",
        "evaluation.do_sample=true",
        "evaluation.test_prompts=7",
        "dataset.style_judge=classifier",
        "dataset.judge_labels=null",
        "dataset.prompted_baseline=Be blunt",
        "output_dir=elsewhere",
        "tracking.experiment=other",
        "resume=false",
    ],
)
def test_weights_fingerprint_ignores_name_and_evaluation(override):
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
def test_weights_fingerprint_depends_on_what_shapes_the_weights(override):
    assert weights_fingerprint(changed(override), DIGEST) != weights_fingerprint(compose(), DIGEST)


@pytest.mark.parametrize("fingerprint", [run_fingerprint, weights_fingerprint])
def test_fingerprints_depend_on_data_and_dependencies(fingerprint):
    cfg = compose()
    different = [
        fingerprint(cfg, DIGEST),
        fingerprint(cfg, {"data": "other"}),
        fingerprint(cfg, DIGEST, {"policy": "a"}),
    ]
    different += [fingerprint(cfg, DIGEST, {"policy": "b"}), fingerprint(cfg, DIGEST, {"reward": "a"})]
    assert len(set(different)) == 5


def make_run(cfg, model=True, **state):
    """A run directory as training would leave it."""
    with acquire(cfg, DIGEST) as directory:
        directory.update_state(**state)
    if model:
        (directory.path / "model").mkdir()
        (directory.path / "model" / "config.json").write_text("{}")
    return directory.path


def test_find_completed_needs_status_finished_and_a_model(cfg, tmp_path):
    fingerprint = weights_fingerprint(cfg, DIGEST)
    assert run_dir.find_completed(str(tmp_path / "nowhere"), fingerprint) is None
    make_run(cfg)  # still running, though it has a model
    assert run_dir.find_completed(str(tmp_path), fingerprint) is None
    cfg.run_name = "emptied"
    make_run(cfg, model=False, status="finished")
    assert run_dir.find_completed(str(tmp_path), fingerprint) is None
    cfg.run_name = "good"
    path = make_run(cfg, status="finished", mlflow_run_id="f" * 32)
    artifact = run_dir.find_completed(str(tmp_path), fingerprint)
    assert artifact == run_dir.RunArtifact(path / "model", fingerprint, path.name, "f" * 32)
    assert run_dir.find_completed(str(tmp_path), weights_fingerprint(changed("seed=2"), DIGEST)) is None


@pytest.mark.parametrize("digest", [run_dir.saved_digest, folder_digest], ids=["today", "earlier versions"])
def test_model_that_was_changed_later_is_refused(cfg, tmp_path, digest):
    path = make_run(cfg, status="finished")
    directory = run_dir.RunDir(path, run_dir.load_state(path))
    directory.update_state(model_digest=digest(path / "model"))
    (path / "model" / "README.md").write_text("a card is no part of the model")
    assert find_by_name(path.name, str(tmp_path)).name == path.name
    (path / "model" / "model.safetensors").write_bytes(b"others")
    for find in (
        lambda: run_dir.find_completed(str(tmp_path), weights_fingerprint(cfg, DIGEST)),
        lambda: find_by_name(path.name, str(tmp_path)),
    ):
        with pytest.raises(MannersError, match="was changed after its run had finished"):
            find()


def test_run_that_has_saved_nothing_yet_has_not_finished(cfg, tmp_path):
    path = make_run(cfg, status="running")
    shutil.rmtree(path / "model")
    with pytest.raises(MannersError, match="has not finished: repeat its command"):
        find_by_name(path.name, str(tmp_path))


@pytest.mark.parametrize("change", [lambda file: file.write_text("seed: 2"), lambda file: file.unlink()])
def test_config_of_a_model_that_was_changed_is_refused(cfg, tmp_path, change):
    path = make_run(cfg, status="finished")
    (path / "model" / "manners.yaml").write_text("seed: 1")
    run_dir.RunDir(path, run_dir.load_state(path)).update_state(model_digest=run_dir.saved_digest(path / "model"))
    change(path / "model" / "manners.yaml")
    with pytest.raises(MannersError, match="was changed after its run had finished"):
        find_by_name(path.name, str(tmp_path))


@pytest.mark.parametrize("status, found", [("finished", True), ("pruned", True), ("running", False)])
def test_find_ended_needs_the_run_fingerprint_and_an_end(cfg, tmp_path, status, found):
    path = make_run(cfg, status=status, metric=0.5)
    ended = run_dir.find_ended(str(tmp_path), run_fingerprint(cfg, DIGEST))
    assert (ended is not None) == found
    if ended:
        assert (ended[0], ended[1].status, ended[1].metric) == (path, status, 0.5)
    assert run_dir.find_ended(str(tmp_path), run_fingerprint(cfg, {"data": "other"})) is None


def test_find_by_name_takes_folder_model_folder_name_and_run_id(cfg, tmp_path, monkeypatch):
    path = make_run(cfg, status="finished", mlflow_run_id="f" * 32)
    names = [str(path), str(path / "model"), path.name, "f" * 32]
    assert {find_by_name(name, str(tmp_path)) for name in names} == {
        run_dir.find_completed(str(tmp_path), weights_fingerprint(cfg, DIGEST))
    }
    monkeypatch.chdir(path / "model")
    assert find_by_name(".", str(tmp_path)).name == path.name
    assert find_by_name("e" * 32, str(tmp_path)) is None
    assert find_by_name("nothing-here", str(tmp_path)) is None


def test_find_by_name_takes_a_run_name_that_one_run_has(tmp_path):
    paths = [make_run(changed(f"output_dir={tmp_path}", "run_name=mine", f"seed={seed}"), status=status)
             for seed, status in ((1, "finished"), (2, "running"))]  # fmt: skip
    assert find_by_name("mine", str(tmp_path)).name == paths[0].name
    make_run(changed(f"output_dir={tmp_path}", "run_name=mine", "seed=3"), status="finished")
    with pytest.raises(MannersError, match=r"several runs are called mine: name one of mine-\w{8}, mine-\w{8}\."):
        find_by_name("mine", str(tmp_path))


@pytest.mark.parametrize("status", ["running", "pruned", ""])
def test_find_by_name_refuses_a_run_that_has_not_finished(cfg, tmp_path, status):
    """A crash while the model was saved leaves a folder that looks whole."""
    path = make_run(cfg, status=status, mlflow_run_id="f" * 32)
    for name in (str(path), str(path / "model"), path.name, "f" * 32):
        with pytest.raises(MannersError, match=f"the run {path.name} has not finished: repeat its command"):
            find_by_name(name, str(tmp_path))


def test_find_by_name_takes_a_checkpoint_as_a_plain_folder(cfg, tmp_path):
    checkpoint = make_run(cfg, status="running") / "checkpoint-10"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    found = find_by_name(str(checkpoint), str(tmp_path))
    assert (found.name, found.run_id) == ("checkpoint-10", "")


def test_find_by_name_digests_a_folder_that_is_no_run(tmp_path):
    for name, weights in (("one", b"1"), ("same", b"1"), ("other", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    one, same, other = (find_by_name(str(tmp_path / name), "out") for name in ("one", "same", "other"))
    assert (one.name, one.run_id, one.config) == ("one", "", None)
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_stage_lock_lets_a_second_job_wait_and_find_the_run(tmp_path):
    """Two real processes, started together: one trains, the other waits, and nothing is trained twice."""
    code = f"""
import json, sys, time
from pathlib import Path
from manners.runtime.run_dir import find_completed, stage_lock
out = Path({str(tmp_path)!r})
with stage_lock(str(out), "fingerprint", lambda: print("waits", flush=True)):
    if find_completed(str(out), "fingerprint"):
        print("found", flush=True)
    else:
        print("trains", flush=True)
        while not (out / "go").exists():
            time.sleep(0.01)
        run = out / "runs" / f"by-{{sys.argv[1]}}"
        (run / "model").mkdir(parents=True)
        state = {{"status": "finished", "weights_fingerprint": "fingerprint"}}
        (run / "run.json").write_text(json.dumps(state))
"""
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(i)], stdout=-1, text=True) for i in range(2)]
    first_lines = sorted(job.stdout.readline().strip() for job in jobs)
    assert first_lines == ["trains", "waits"]
    time.sleep(0.2)
    assert all(job.poll() is None for job in jobs)  # it really waits
    (tmp_path / "go").touch()
    assert sorted(job.communicate(timeout=60)[0].strip() for job in jobs) == ["", "found"]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_stage_lock_of_a_killed_job_is_released(tmp_path):
    code = f"""
from manners.runtime.run_dir import stage_lock
with stage_lock({str(tmp_path)!r}, "fingerprint", lambda: None):
    print("locked", flush=True)
    input()
"""
    job = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    assert job.stdout.readline().strip() == "locked"
    job.send_signal(signal.SIGKILL)
    job.communicate()
    with run_dir.stage_lock(str(tmp_path), "fingerprint", lambda: pytest.fail("nobody holds it")):
        pass
