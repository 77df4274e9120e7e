"""Atomic writes, and one readable error for a disk that is full or read-only."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from manners.errors import MannersError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces ``path`` once it is complete on disk; until then ``path`` keeps its content.

    Raises what the block raises, and removes the incomplete file.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except Exception:
        part.unlink(missing_ok=True)  # a full disk needs the space
        raise


@contextmanager
def report_disk_errors(folder: str) -> Iterator[None]:
    """Raises MannersError in place of the error of a disk that is full or read-only."""
    try:
        yield
    except Exception as error:
        number = errno_of(error)
        if number not in (*DISK_FULL, errno.EROFS):
            raise
        remedy = "free some space" if number in DISK_FULL else "make it writable"
        raise MannersError(
            f"output_dir={folder} cannot be written ({os.strerror(number)}). Earlier files, the last checkpoint among "
            f"them, are intact: {remedy}, and type the same command again, which resumes the run."
        ) from error


def check_writable(
    folder: str, remedy: str = "Choose another place: output_dir=FOLDER.", name: str = "output_dir="
) -> None:
    """Make the folder, and raise MannersError with a remedy where nothing can be written into it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MannersError(f"{name}{folder} cannot be written ({error.strerror}). {remedy}") from None


def check_cache(folder: Path) -> None:
    """Make a folder of the user's cache. Raises MannersError where nothing can be written into it."""
    check_writable(str(folder), "Choose another place for it: XDG_CACHE_HOME=FOLDER.", "the cache ")


def errno_of(error: BaseException | None) -> int:
    """The errno of a failed write, from the error or one that caused it; 0 where it was not a failed write."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if match := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors'
            return int(match[1])
        error = error.__cause__ or error.__context__  # torch.save raises "unexpected pos" over the true reason
    return 0
