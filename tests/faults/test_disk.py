"""A disk that takes no more in mid-run: the last checkpoint survives, one sentence says so, the command goes on."""

import os
import resource
import signal
import subprocess

import pytest

from manners.errors import MannersError
from manners.runtime import atomic_io
from tests.commands import Command, find_run, read_records, small_strictbot, train
from tests.faults.processes import METHODS, weights


def limited(write, size):
    """``write()`` in a process that may write no file beyond ``size`` bytes; how it ended."""
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
def test_what_was_written_before_survives_and_the_room_is_given_back(tmp_path, library):
    """Each library words a full disk in its own way, and torch hides it."""
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

    assert limited(lambda: write(1000), 10_000) == 0
    before = (tmp_path / "file").read_bytes()
    assert limited(lambda: write(100_000), 10_000) == 1
    assert (tmp_path / "file").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_another_error_stays_what_it_is():
    with pytest.raises(FileNotFoundError), atomic_io.report_disk_errors("outputs"):
        open("nowhere/at/all").close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 160 MB, and a function that mounts it anew."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(where)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_command_ends_in_a_sentence_and_goes_on_when_there_is_room(tmp_path, small_disk, method, fault):
    command = [*METHODS[method], "method.save_steps=2", *small_strictbot(tmp_path)]
    train(*command, f"output_dir={tmp_path / 'whole'}")
    command += [f"output_dir={small_disk}"]
    run = Command(*command)
    run.wait_until(lambda: any(r["step"] >= 3 for f in small_disk.glob("runs/*/metrics.jsonl") for r in read_records(f)))
    filler = small_disk / "filler"
    folder = find_run(small_disk, "*")
    run.kill(signal.SIGSTOP)  # SIGSTOP: what is at hand is written as a whole, then the disk is full
    if fault == "full":
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4096"], capture_output=True)
    else:
        # Files are open for writing, so that the disk itself cannot be remounted: its folder is covered by itself.
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
    assert "going on from the last checkpoint" in train(*command)
    assert weights(folder) == weights(find_run(tmp_path / "whole", "*"))
