"""What a run tells MLflow, sent by a thread of its own: neither a slow nor a vanished server costs training anything.

Metrics are in ``metrics.jsonl`` of the run folder before they are sent, and all else is in ``unsent.jsonl`` until it
is. Where the server does not answer, the thread tries again and again. What it has to leave at the end is sent when
the run goes on, or by ``python -m manners.tracking.sync``.
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

PATIENCE = 10.0  # seconds that the end of a run waits for a server that does not answer
BATCH = 40  # records sent at once
# MLflow's words for what no second try would mend. Anything else may be a server that is away for a while.
REFUSALS = {
    *("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "PERMISSION_DENIED", "UNAUTHENTICATED"),
    *("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "NOT_FOUND", "ENDPOINT_NOT_FOUND"),
}
Item = dict[str, Any]


class ServerUnavailable(Exception):
    """The run is over, and the server did not come back in time."""


class AsyncMLflowWriter:
    """Begins with what a kill or an absent server kept from the store.

    ``known`` has the steps of each metric that the store holds already: they are not sent again. The end of a run is
    sent again only where the run is ``over``. ``behind`` says how many values and how many other things were left.
    """

    def __init__(self, client: Any, run_id: str, folder: Path, known: dict[str, set[int]], over: bool = False):
        self.client, self.run_id, self.folder = client, run_id, folder
        self.known = {name: set(steps) for name, steps in known.items()}
        self.metrics_file, self.unsent_file = folder / "metrics.jsonl", folder / "unsent.jsonl"
        self.refused: list[str] = []
        self.left = False  # whether something was not sent
        self.deadline: float | None = None  # until when to try, once the run is over
        self.closing = threading.Event()
        self.lock = threading.Lock()
        for file in (self.metrics_file, self.unsent_file):
            drop_torn_line(file)
        self.queue: queue.Queue[Item | None] = queue.Queue()
        self.behind = self._catch_up(over)  # before the thread starts, which unlinks what it thinks is sent
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Those that are new: a resumed run repeats some steps, and each is kept once."""
        new = self._new(values, step)
        if new:
            item = {"step": step, "time": time.time(), **new}
            append_record(self.metrics_file, item)
            self.queue.put({"metrics": item})

    def put(self, item: Item) -> None:
        """A tag, artifact, table or end: see ``_send``."""
        with self.lock:
            self.queue.put(item)
            append_record(self.unsent_file, item)

    def _catch_up(self, over: bool) -> tuple[int, int]:
        values = 0
        for item in read_records(self.metrics_file):
            stamp = {"step": item.pop("step"), "time": item.pop("time")}
            new = self._new(item, stamp["step"])
            if new:
                self.queue.put({"metrics": stamp | new})
                values += len(new)
        others = [item for item in read_records(self.unsent_file) if over or "end" not in item]
        for item in others:
            self.queue.put(item)
        return values, len(others)

    def close(self) -> bool:
        """Wait until all is sent, or until the server has been away for too long. Whether all was sent."""
        self.deadline = time.monotonic() + PATIENCE
        self.closing.set()
        self.queue.put(None)
        self.thread.join()
        if self.refused:
            print(
                f"the tracking server refused {len(self.refused)} things, first: {self.refused[0]}. They are in "
                f"{self.folder}",
                file=sys.stderr,
            )
        return not self.left

    def _new(self, values: dict[str, float], step: int) -> dict[str, float]:
        new = {k: float(v) for k, v in values.items() if step not in self.known.get(k, ())}
        for name in new:
            self.known.setdefault(name, set()).add(step)
        return new

    def _work(self) -> None:
        try:
            while (first := self.queue.get()) is not None:
                items = [first]
                while len(items) < BATCH and not self.queue.empty():
                    if (more := self.queue.get()) is None:
                        self.queue.put(None)
                        break
                    items.append(more)
                records = [item["metrics"] for item in items if "metrics" in item]
                if records:
                    self._try(lambda records=records: self._send_metrics(records), "metrics")  # type: ignore[misc]
                for item in items:
                    if "metrics" not in item:
                        self._try(lambda item=item: self._send(item), next(iter(item)))  # type: ignore[misc]
                with self.lock:
                    if self.queue.empty() or self.queue.queue[0] is None:
                        with suppress(OSError):  # training tells of a disk that takes no more
                            self.unsent_file.unlink()
        except ServerUnavailable:
            self.left = True

    def _try(self, send: Callable[[], None], what: str) -> None:
        """Until it is taken or refused. Raises GaveUp where the run is over and the server away."""
        wait = 1.0
        while True:
            try:
                return send()
            except Exception as error:  # noqa: BLE001  whatever a server does wrong, the training goes on
                if getattr(error, "error_code", "") in REFUSALS or isinstance(error, FileNotFoundError):
                    self.refused.append(f"{what} ({(str(error) or type(error).__name__).splitlines()[0]})")
                    return None
            if self.deadline and time.monotonic() > self.deadline:
                raise ServerUnavailable
            if not self.closing.wait(wait):
                wait = min(2 * wait, 30.0)
            else:
                time.sleep(1.0)

    def _send_metrics(self, records: list[Item]) -> None:
        from mlflow.entities import Metric

        # The same time each time: what the store took without our hearing of it, it recognises.
        self.client.log_batch(
            self.run_id,
            metrics=[
                Metric(name, value, int(record["time"] * 1000), record["step"])
                for record in records
                for name, value in record.items()
                if name not in ("step", "time")
            ],
        )

    def _send(self, item: Item) -> None:
        client, run_id = self.client, self.run_id
        if "tag" in item:
            client.set_tag(item.get("run_id", run_id), item["tag"], item["value"])
        elif "artifact" in item:
            path = self.folder / item["artifact"]
            if path.is_dir():
                client.log_artifacts(run_id, str(path), item["folder"] or path.name)
            else:
                client.log_artifact(run_id, str(path), item["folder"])
        elif "table" in item:  # one that is there already stays: a resumed run repeats it, and MLflow would append
            name = item["table"]
            beside = client.list_artifacts(run_id, name.rpartition("/")[0] or None)
            if name not in [f.path for f in beside]:
                client.log_table(run_id, item["columns"], name)
        elif "end" in item:
            client.set_terminated(run_id, item["end"])


def append_record(file: Path, item: Item) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(item) + "\n")


def read_records(file: Path) -> list[Item]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def drop_torn_line(file: Path) -> None:
    """A full disk or a kill may have cut the last line, which the resumed run says again."""
    data = file.read_bytes() if file.exists() else b""
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(file, whole)
