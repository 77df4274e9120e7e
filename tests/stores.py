"""Creating an MLflow store takes some seconds: the tests copy an empty one that is created once for them all."""

import os
import shutil
from pathlib import Path

from filelock import FileLock

from manners.tracking import store

TEMPLATE = "MANNERS_TEST_STORE"  # environment variable of the session, its workers and the commands that they start


def copy_empty_store(file: Path) -> None:
    """An empty store at ``file``, unless there is one. Outside a session of pytest, MLflow creates its own."""
    template = os.environ.get(TEMPLATE)
    if file.exists() or not template:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{template}.lock"):
        if not Path(template).exists():
            import mlflow

            mlflow.MlflowClient(f"sqlite:///{template}.part").search_experiments()
            os.replace(f"{template}.part", template)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    shutil.copyfile(template, part)
    os.replace(part, file)


def absolute_uri(uri: str) -> str:
    """``manners.tracking.store.absolute_uri``, with an empty store copied to where there is none."""
    absolute = original_absolute_uri(uri)
    if path := store.sqlite_path(uri):
        copy_empty_store(path)
    return absolute


original_absolute_uri = store.absolute_uri
