"""Asynchronous logging to MLflow: neither a slow nor an unreachable server delays training.

Metrics are written to ``metrics.jsonl`` of the run directory before they are sent; other records are in
``unsent.jsonl`` until they are sent. A thread sends them, and retries while the server does not answer. What is unsent
at the end is sent when the run resumes, or by ``python -m manners.tracking.sync``.
"""

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

CLOSE_TIMEOUT = 10.0  # seconds that the end of a run waits for a server that does not answer
BATCH_SIZE = 40  # records sent at once
REFUSED = "refused.jsonl"  # in the run directory
# MLflow's error codes that no retry would change. Any other error may be a server that is away for a while.
PERMANENT_ERRORS = {
    *("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "PERMISSION_DENIED", "UNAUTHENTICATED"),
    *("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "NOT_FOUND", "ENDPOINT_NOT_FOUND"),
}
Record = dict[str, Any]


class ServerUnavailable(Exception):
    """The run has ended, and the server did not answer in time."""


class AsyncMLflowWriter:
    """Sends records in order, beginning with those that an earlier part of the run left unsent.

    ``known`` has the steps of each metric that the store has: they are not sent again. The end of an earlier part is
    sent only if ``run_ended``. ``backlog`` counts the metric values and the other records that were left unsent.
    """

    def __init__(self, client: Any, run_id: str, folder: Path, known: dict[str, set[int]], run_ended: bool = False):
        self.client, self.run_id, self.folder = client, run_id, folder
        self.known = {name: set(steps) for name, steps in known.items()}
        self.metrics_file, self.unsent_file = folder / "metrics.jsonl", folder / "unsent.jsonl"
        self.refused: list[str] = []
        self.incomplete = False  # whether a record was not sent
        self.deadline: float | None = None  # for retries, once the run has ended
        self.closing = threading.Event()
        self.lock = threading.Lock()
        for file in (self.metrics_file, self.unsent_file):
            drop_torn_line(file)
        self.queue: queue.Queue[Record | None] = queue.Queue()
        # Before the thread starts, which removes the file of unsent records.
        self.backlog = self._queue_unsent(run_ended)
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def put_metrics(self, values: dict[str, float], step: int) -> dict[str, float]:
        """Log the values that are new, and return them: a resumed run repeats some steps, and each is kept once."""
        new = self._new(values, step)
        if new:
            record = {"step": step, "time": time.time(), **new}
            append_record(self.metrics_file, record)
            self.queue.put({"metrics": record})
        return new

    def put(self, record: Record) -> None:
        """Log a tag, artifact, table or the end of the run: see ``_send``."""
        with self.lock:
            self.queue.put(record)
            append_record(self.unsent_file, record)

    def _queue_unsent(self, run_ended: bool) -> tuple[int, int]:
        values = 0
        for record in read_records(self.metrics_file):
            stamp = {"step": record.pop("step"), "time": record.pop("time")}
            new = self._new(record, stamp["step"])
            if new:
                self.queue.put({"metrics": stamp | new})
                values += len(new)
        others = [record for record in read_records(self.unsent_file) if run_ended or "end" not in record]
        for record in others:
            self.queue.put(record)
        return values, len(others)

    def close(self) -> bool:
        """Wait until everything is sent, or for ``CLOSE_TIMEOUT`` seconds. Whether everything was sent."""
        self.deadline = time.monotonic() + CLOSE_TIMEOUT
        self.closing.set()
        self.queue.put(None)
        self.thread.join()
        if self.refused:
            print(
                f"the tracking server refused {len(self.refused)} records, first: {self.refused[0]}. They are in "
                f"{self.folder / REFUSED}",
                file=sys.stderr,
            )
        return not self.incomplete

    def _new(self, values: dict[str, float], step: int) -> dict[str, float]:
        new = {k: float(v) for k, v in values.items() if step not in self.known.get(k, ())}
        for name in new:
            self.known.setdefault(name, set()).add(step)
        return new

    def _work(self) -> None:
        try:
            while (first := self.queue.get()) is not None:
                batch = [first]
                while len(batch) < BATCH_SIZE and not self.queue.empty():
                    if (more := self.queue.get()) is None:
                        self.queue.put(None)
                        break
                    batch.append(more)
                records = [record["metrics"] for record in batch if "metrics" in record]
                if records:
                    self._try(self._send_metrics, records)
                for record in batch:
                    if "metrics" not in record:
                        self._try(self._send, record)
                with self.lock:
                    if self.queue.empty() or self.queue.queue[0] is None:
                        with suppress(OSError):  # training reports a full disk
                            self.unsent_file.unlink()
        except ServerUnavailable:
            self.incomplete = True

    def _try(self, send: Callable[[Any], None], records: Any) -> None:
        """Retry until the server takes or refuses it. Raises ServerUnavailable where the run has ended meanwhile."""
        wait = 1.0
        while True:
            try:
                return send(records)
            except Exception as error:  # noqa: BLE001  whatever a server does wrong, training continues
                if getattr(error, "error_code", "") in PERMANENT_ERRORS or isinstance(error, FileNotFoundError):
                    return self._refuse(send, records, error)
            if self.deadline and time.monotonic() > self.deadline:
                raise ServerUnavailable
            if not self.closing.wait(wait):
                wait = min(2 * wait, 30.0)
            else:
                time.sleep(1.0)

    def _refuse(self, send: Callable[[Any], None], records: Any, error: Exception) -> None:
        """Keep what the server refuses; of several metric values, of which one may spoil all, only those it refuses."""
        metrics = isinstance(records, list)
        parts = [part for record in records for part in single_values(record)] if metrics else []
        if len(parts) > 1:
            for part in parts:
                self._try(send, [part])
            return
        record = records[0] if metrics else records
        what = "metrics" if metrics else next(iter(record))
        self.refused.append(f"{what} ({(str(error) or type(error).__name__).splitlines()[0]})")
        append_record(self.folder / REFUSED, record)

    def _send_metrics(self, records: list[Record]) -> None:
        from mlflow.entities import Metric

        # The timestamp stays the same, so that the store recognizes values whose receipt was lost.
        self.client.log_batch(
            self.run_id,
            metrics=[
                Metric(name, value, int(record["time"] * 1000), record["step"])
                for record in records
                for name, value in record.items()
                if name not in ("step", "time")
            ],
        )

    def _send(self, record: Record) -> None:
        client, run_id = self.client, self.run_id
        if "tag" in record:
            client.set_tag(record.get("run_id", run_id), record["tag"], record["value"])
        elif "artifact" in record:
            path = self.folder / record["artifact"]
            if path.is_dir():
                client.log_artifacts(run_id, str(path), record["folder"] or path.name)
            else:
                client.log_artifact(run_id, str(path), record["folder"])
        elif "table" in record:  # a resumed run logs it again, and MLflow would append: an existing table stays
            name = record["table"]
            existing = client.list_artifacts(run_id, name.rpartition("/")[0] or None)
            if name not in [f.path for f in existing]:
                client.log_table(run_id, record["columns"], name)
        elif "end" in record:
            client.set_terminated(run_id, record["end"])


def single_values(record: Record) -> list[Record]:
    """A record of metrics as one record for each value."""
    stamp = {"step": record["step"], "time": record["time"]}
    return [stamp | {name: value} for name, value in record.items() if name not in stamp]


def append_record(file: Path, record: Record) -> None:
    """Append a record to a JSON lines file."""
    with file.open("a") as lines:
        lines.write(json.dumps(record) + "\n")


def read_records(file: Path) -> list[Record]:
    """The records of a JSON lines file; none where it does not exist."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def drop_torn_line(file: Path) -> None:
    """Remove an incomplete last line, left by a full disk or a kill; the resumed run logs it again."""
    data = file.read_bytes() if file.exists() else b""
    complete = data.rfind(b"\n") + 1
    if complete < len(data):
        os.truncate(file, complete)
