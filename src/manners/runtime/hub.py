"""The Hugging Face hub: one quick check whether it can be reached, then the network or the local cache.

Without the check, an offline machine retries for minutes before it reports anything.
"""

import os
import socket
from functools import cache
from typing import Any
from urllib.parse import urlparse

from manners.errors import MannersError
from manners.runtime.paths import existing_path

CONNECT_TIMEOUT = 3.0  # seconds


@cache
def go_offline_if_unreachable() -> bool:
    """Whether the hub is unreachable; if so, its libraries are set to use the cache before they are imported."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes"):
        return True
    endpoint = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((endpoint.hostname or "", endpoint.port or 443), timeout=CONNECT_TIMEOUT).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = True
        return True
    return False


def not_found_error(kind: str, name: str, key: str, error: Exception) -> MannersError:
    """The error for a name that could not be loaded, because the hub is unreachable or the name is wrong."""
    if go_offline_if_unreachable():
        return MannersError(
            f"the hub cannot be reached, and {kind} '{name}' is not in its local cache. On a machine with internet: "
            f"hf download {'--repo-type dataset ' if kind == 'dataset' else ''}{name} --local-dir FOLDER; then copy "
            f"the folder here and set {key}=FOLDER."
        )
    reason = str(error).strip().splitlines()
    return MannersError(f"{kind} '{name}' cannot be loaded: {reason[0] if reason else type(error).__name__}")


def load_dataset(path: str, name: str | None) -> dict[str, Any]:
    """All splits of a hub dataset, or of a folder with its files. Raises MannersError where it cannot be loaded.

    Loading scripts are never run.
    """
    go_offline_if_unreachable()
    import datasets

    folder = existing_path(path)
    try:
        if folder and (folder / "state.json").exists():  # save_to_disk of a single split
            return {"train": datasets.load_from_disk(path)}
        return dict(datasets.load_dataset(path, name))
    except Exception as error:
        if folder:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise MannersError(f"dataset.path={path}: the folder cannot be read ({reason[0]}).") from error
        raise not_found_error("dataset", path, "dataset.path", error) from error
