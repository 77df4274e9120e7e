"""A disk that becomes full or read-only during a run: the last checkpoint survives, and the command resumes."""

import os
import resource
import signal
import subprocess

import pytest

from manners.errors import MannersError
from manners.runtime import atomic_io
from tests.commands import Command, find_run, read_records, small_strictbot, train
from tests.faults.processes import METHODS, model_weights


def exit_code_with_limit(write, size):
    """The exit code of a process that calls ``write()`` with files limited to ``size`` bytes; 1 for MannersError."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            with atomic_io.report_disk_errors("outputs"):
                write()
            code = 0
        except MannersError as error:
            code = 1 if "output_dir=outputs cannot be written (File too large)" in str(error) else 71
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("library", ["torch", "safetensors", "python"])
def test_atomic_write_keeps_the_old_file_on_a_full_disk(tmp_path, library):
    """Each library reports a full disk in its own way, and torch hides it; the partial file is removed."""
    import torch
    from safetensors.torch import save_file

    def write(size):
        with atomic_io.atomic_write(tmp_path / "file") as file:
            if library == "torch":
                torch.save({"a": torch.zeros(size // 4)}, file)
            elif library == "safetensors":
                save_file({"a": torch.zeros(size // 4)}, file.name)
            else:
                file.write(bytes(size))

    assert exit_code_with_limit(lambda: write(1000), 10_000) == 0
    before = (tmp_path / "file").read_bytes()
    assert exit_code_with_limit(lambda: write(100_000), 10_000) == 1
    assert (tmp_path / "file").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_report_disk_errors_leaves_other_errors_alone():
    with pytest.raises(FileNotFoundError), atomic_io.report_disk_errors("outputs"):
        open("nowhere/at/all").close()


@pytest.fixture
def small_disk(tmp_path):
    """The folder of a file system of 160 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_command_fails_with_a_message_and_resumes_with_space(tmp_path, small_disk, method, fault):
    command = [*METHODS[method], "method.save_steps=2", *small_strictbot(tmp_path)]
    train(*command, f"output_dir={tmp_path / 'full'}")
    command += [f"output_dir={small_disk}"]
    run = Command(*command)
    run.wait_until(
        lambda: any(r["step"] >= 3 for f in small_disk.glob("runs/*/metrics.jsonl") for r in read_records(f))
    )
    filler = small_disk / "filler"
    folder = find_run(small_disk, "*")
    run.kill(signal.SIGSTOP)
    if fault == "full":
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4096"], capture_output=True)
    else:
        # The file system cannot be remounted while files are open for writing, but the folder can be bound to itself.
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    run.kill(signal.SIGCONT)
    assert run.wait() == 1, run.output
    assert f"error: output_dir={small_disk} cannot be written" in run.output and "Traceback" not in run.output
    assert (folder / "last.ckpt").exists()
    if fault == "full":
        filler.unlink()
    else:
        subprocess.run(["umount", str(folder)], check=True)
    assert "resuming from the last checkpoint" in train(*command)
    assert model_weights(folder) == model_weights(find_run(tmp_path / "full", "*"))
