"""``python -m manners.tracking.sync RUN_DIR``: send to MLflow what a run could not, because the server was away.

A second call finds nothing left to send. A run that did not finish sends it when its command is typed again.
"""

import argparse
import sys
from pathlib import Path

from filelock import FileLock
from omegaconf import OmegaConf

from manners.errors import MannersError
from manners.redact import redact_secrets
from manners.runtime import run_dir
from manners.tracking import store
from manners.tracking.async_writer import AsyncMLflowWriter


def sync_run(folder: Path, uri: str | None) -> str:
    """What was sent, in a sentence. Raises MannersError where ``folder`` is not a run's, or the server still away."""
    state = run_dir.load_state(folder)
    if state is None or not state.mlflow_run_id:
        raise MannersError(f"{folder} is not the directory of a run. Those are in outputs/runs.")
    uri = uri or str(OmegaConf.load(folder / "config.yaml").tracking.uri)
    if "***" in uri:
        raise MannersError(f"{folder} does not keep the password of its store: --uri URI, with the password.")
    client = store.existing_store(uri)
    if client is None:
        raise MannersError(f"there is no store at {uri}. Another one: --uri URI.")
    lock = FileLock(folder / "lock")
    if not run_dir.try_lock(lock):
        raise MannersError(f"{folder.name} is running, and sends what it has by itself.")
    try:
        store.check_not_deleted(client, state.mlflow_run_id, uri)
        known = store.logged_steps(client, state.mlflow_run_id)
        writer = AsyncMLflowWriter(client, state.mlflow_run_id, folder, known, run_ended=True)
        if not writer.close():
            raise MannersError(f"{uri} does not answer: nothing is lost, type the same again once it does.")
    except MannersError:
        raise
    except Exception as error:  # noqa: BLE001  MLflow's, which only the store imports
        reason = str(error).splitlines()[0]
        raise MannersError(f"the store {uri} does not have this run ({reason}). Another store: --uri URI.") from None
    finally:
        lock.release()
    values, others = writer.backlog
    return f"{values} values and {others} other records sent to {redact_secrets(uri)}"


def sync_from_command_line() -> None:
    """The command: print what was sent, or the error."""
    parser = argparse.ArgumentParser(prog="python -m manners.tracking.sync", description=__doc__)
    parser.add_argument("folder", type=Path, help="of the run, such as outputs/runs/NAME")
    parser.add_argument("--uri", help="of the MLflow store; by default the run's own")
    args = parser.parse_args()
    try:
        print(sync_run(args.folder, args.uri))
    except MannersError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    sync_from_command_line()
