"""Files that are written as a whole or not at all, and what is said when the disk takes no more."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from manners.errors import MannersError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file to write in the place of ``path``, which keeps what it has until all is on the disk."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except Exception:
        part.unlink(missing_ok=True)  # a full disk needs the room
        raise


@contextmanager
def report_disk_errors(folder: str) -> Iterator[None]:
    """Within, a disk that is full or not to be written to ends the command in one sentence."""
    try:
        yield
    except Exception as error:
        number = errno_of(error)
        if number not in (*FULL, errno.EROFS):
            raise
        mend = "make room" if number in FULL else "see that it can be written to"
        raise MannersError(
            f"output_dir={folder} takes no more ({os.strerror(number)}). What was written before is whole, the last "
            f"checkpoint too: {mend}, and type the same command again; it goes on from there."
        ) from error


def errno_of(error: BaseException | None) -> int:
    """The system's number for what went wrong in writing, from the error or one under it; 0 where it was not that."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if match := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors'
            return int(match[1])
        error = error.__cause__ or error.__context__  # torch.save says "unexpected pos" over the true reason
    return 0
