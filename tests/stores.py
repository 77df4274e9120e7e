"""A fresh MLflow store takes some seconds to make: the tests copy one that is made once for them all."""

import fcntl
import os
import shutil
from pathlib import Path

from manners.tracking import store

PLACE = "MANNERS_TEST_STORE"  # set for the session, and for the workers and commands that it starts


def put(file: Path) -> None:
    """An empty store at ``file``, unless there is one. Outside a session of pytest, MLflow makes its own."""
    place = os.environ.get(PLACE)
    if file.exists() or not place:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{place}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not Path(place).exists():
            import mlflow

            mlflow.MlflowClient(f"sqlite:///{place}.part").search_experiments()
            os.replace(f"{place}.part", place)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    shutil.copyfile(place, part)
    os.replace(part, file)


def absolute(uri: str) -> str:
    """As manners.tracking.store has it, with the store put there."""
    found = made_absolute(uri)
    if found.startswith("sqlite:///"):
        put(Path(found.removeprefix("sqlite:///")))
    return found


made_absolute = store.absolute_uri
