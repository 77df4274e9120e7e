"""The file of votes: rows are appended, each on disk before the page hears of it, and none is ever rewritten."""

import errno
import json
import os
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manners.data.files import file_rows
from manners.data.formats.votes import LABELS, UNDO, Vote, Votes, check_rows, parse_vote, read_votes
from manners.errors import MannersError


@dataclass
class VoteFile:
    """``path``, which ``dataset=jsonl`` reads as ``dataset.path``."""

    path: Path
    lock: Any = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Raises MannersError for a file with a row that is no vote, or that cannot be written."""
        if self.path.suffix != ".jsonl" or self.path.is_dir():
            raise MannersError(f"votes={self.path}: votes are rows of a .jsonl file.", "votes")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab"):
                pass
        except OSError as error:
            raise MannersError(f"votes={self.path} cannot be written ({error.strerror}).", "votes") from None
        self.standing()

    def read(self) -> Votes:
        """All votes, as training would read them. Raises OSError where the file is gone."""
        return read_votes(file_rows(self.path, self.path.name, "auto", "none") if self.path.stat().st_size else ())

    def standing(self) -> list[Vote]:
        """The votes that were not taken back. Raises MannersError for a row that is no vote."""
        found = self.read()
        check_rows(found, ", or begin a file: votes=OTHER.jsonl")
        return found.votes

    def append(self, verdict: str, annotator: str, **fields: Any) -> str:
        """Write one vote, and return its id. It is on disk when this returns.

        Raises InvalidRow for what would be no vote, and OSError where it could not be written.
        """
        vote_id = uuid.uuid4().hex[:12]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        row = {"vote": verdict, "id": vote_id, "annotator": annotator, "time": stamp} | fields
        if verdict != UNDO:
            parse_vote(row, str(self.path))
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self.lock:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)  # a file that is gone is missed, not begun anew
            try:
                size = os.fstat(descriptor).st_size
                if size:
                    os.lseek(descriptor, -1, os.SEEK_END)
                    if os.read(descriptor, 1) != b"\n":  # an editor left the last line without its end
                        line = b"\n" + line
                if os.write(descriptor, line) < len(line):  # at once: a killed server leaves no half of a row
                    os.ftruncate(descriptor, size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return vote_id

    def replace(self, verdict: str, annotator: str, **fields: Any) -> None:
        """Write a verdict on one reply, then take back what ``annotator`` said of it before: a label or an edit.

        Raises as ``append``.
        """
        new = parse_vote({"vote": verdict, "id": "new"} | fields, str(self.path))
        kind = LABELS if verdict in LABELS else (verdict,)
        same = (annotator, new.prompt, new.replies, new.models)
        earlier = [
            v for v in self.standing() if (v.annotator, v.prompt, v.replies, v.models) == same and v.verdict in kind
        ]
        self.append(verdict, annotator, **fields)
        for vote in earlier:
            self.append(UNDO, annotator, undone=vote.id)

    def undo(self, annotator: str) -> Vote | None:
        """Take back the last vote of ``annotator`` that stands, and return it; None where there is none."""
        mine = [vote for vote in self.standing() if vote.annotator == annotator]
        if not mine:
            return None
        self.append(UNDO, annotator, undone=mine[-1].id)
        return mine[-1]
