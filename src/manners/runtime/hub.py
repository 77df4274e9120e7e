"""The Hugging Face hub: one quick check whether it can be reached, then the network or the local cache.

Without the check, an offline machine retries for minutes before it reports anything.
"""

import json
import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from manners.errors import MannersError
from manners.runtime.paths import existing_path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
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


def require_model(name: str) -> None:
    """Raises MannersError at once for a folder without a model, and a hub model neither cached nor reachable."""
    if name == "tiny":
        return
    if folder := existing_path(name):
        return check_model_folder(folder, name)
    if name.startswith(("/", ".", "~")):
        raise MannersError(f"model.name={name}: there is no such folder.")
    if not go_offline_if_unreachable():
        return
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no valid name of a hub repository
        raise MannersError(f"model.name={name} is neither an existing folder nor a valid name on the hub.") from None
    if not isinstance(cached, str):
        raise not_found_error("model", name, "model.name", OSError())


def check_model_folder(folder: Path, name: str) -> None:
    """Raise MannersError for a folder that transformers could not load a model and its tokenizer from."""
    problem = f"model.name={name}: "
    if folder.is_file():
        raise MannersError(f"{problem}this is a file: name the folder that it is in, model.name={folder.parent}.")
    if (folder / "run.json").exists():
        raise MannersError(f"{problem}this is a run: start from it with policy_from={name}, or export its model first.")
    if (folder / "adapter_config.json").exists():
        raise MannersError(f"{problem}this is an adapter: start from its run with policy_from=RUN, or export it first.")
    if not (folder / "config.json").exists():
        raise MannersError(f"{problem}the folder has no config.json, so it holds no model.")
    if not any(file.name in TOKENIZER_FILES for file in folder.iterdir()):
        known = ", ".join(TOKENIZER_FILES)
        raise MannersError(f"{problem}the folder has no tokenizer ({known}): download the model again.")
    index = folder / "model.safetensors.index.json"
    with suppress(OSError, ValueError, KeyError, AttributeError):  # a damaged index is for the loader to say
        shards = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(shard for shard in shards if not (folder / shard).exists()):
            raise MannersError(f"{problem}{missing[0]} is missing: download the model again.")
    if not any(folder.glob("*.safetensors")):
        pickled = "; pickled weights (.bin) are not read, as they can run code" if any(folder.glob("*.bin")) else ""
        raise MannersError(f"{problem}the folder has no weights in safetensors format{pickled}.")


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
