"""``python -m manners.tracking.sync RUN_FOLDER``: send to MLflow what a run could not, since the server was away.

Typed twice, it finds nothing more to do. A run that did not finish sends it by itself when its command is typed again.
"""

import argparse
import sys
from pathlib import Path

from omegaconf import OmegaConf

from manners.errors import MannersError
from manners.runtime import run_dir
from manners.tracking import store
from manners.tracking.async_writer import AsyncMLflowWriter


def sync_run(folder: Path, uri: str | None) -> str:
    """What was sent, in a sentence. Raises MannersError where ``folder`` is no run's, or the server still away."""
    run_id = run_dir.load_state(folder).get("mlflow_run_id")
    if run_id is None:
        raise MannersError(f"{folder} is not the folder of a run. Those are in outputs/runs.")
    uri = uri or str(OmegaConf.load(folder / "config.yaml").tracking.uri)
    client = store.existing_store(uri)
    if client is None:
        raise MannersError(f"there is no store at {uri}. Another one: --uri URI.")
    with (folder / "lock").open("w") as lock:
        if not run_dir.try_lock(lock):
            raise MannersError(f"{folder.name} is at work, and sends by itself what it has.")
        try:
            known = store.logged_steps(client, run_id)
        except Exception as error:  # noqa: BLE001  mlflow's, which only the store imports
            why = str(error).splitlines()[0]
            raise MannersError(f"the store {uri} does not have this run ({why}). Another store: --uri URI.") from None
        outbox = AsyncMLflowWriter(client, run_id, folder, known, over=True)
        if not outbox.close():
            raise MannersError(f"{uri} does not answer: nothing is lost, type the same again once it does.")
    values, others = outbox.behind
    return f"{values} values and {others} other things sent to {uri}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m manners.tracking.sync", description=__doc__)
    parser.add_argument("folder", type=Path, help="of the run, such as outputs/runs/NAME")
    parser.add_argument("--uri", help="of the MLflow store; by default the run's own")
    args = parser.parse_args()
    try:
        print(sync_run(args.folder, args.uri))
    except MannersError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
