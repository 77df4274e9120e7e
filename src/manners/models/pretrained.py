"""Where the files of a model are, by its name, and one way to load from them, which runs no code of theirs."""

import os
from collections.abc import Callable
from typing import Any

from manners.errors import MannersError
from manners.models import gguf
from manners.runtime import hub
from manners.runtime.model_files import model_folder
from manners.runtime.packages import PACKAGES
from manners.runtime.paths import existing_path


def resolve_name(name: str, revision: str | None = None) -> str:
    """Return what ``from_pretrained`` takes: a folder where the model is on this machine, or else its name on the hub.

    Raises MannersError for a GGUF file, or a package, that cannot be converted.
    """
    if name == "tiny" or existing_path(name) or (name in PACKAGES and revision is None):  # packages have no revisions
        # An adapter keeps the name of its base, which must be found from any working directory.
        return str(folder.absolute()) if (folder := model_folder(name, download=True, convert=gguf.convert)) else name
    return os.path.expanduser(name)


def from_pretrained(loader: Callable[..., Any], name: str, revision: str | None, **kwargs: Any) -> Any:
    """What ``loader``, the ``from_pretrained`` of one of transformers' classes, makes of a model's files.

    Raises MannersError if there are none, or they cannot be loaded.
    """
    path = resolve_name(name, revision)
    if not existing_path(path):
        if path.startswith(("/", ".", "~")):
            raise MannersError(f"model.name={name}: there is no such folder.")
        hub.go_offline_if_unreachable()
    try:
        return loader(path, revision=revision, trust_remote_code=False, **kwargs)
    except MemoryError:
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for a tokenizer
            raise
        attention = kwargs.get("attn_implementation")
        if attention and "does not support an attention implementation" in str(error):
            raise MannersError(
                f"model.attn_implementation={attention} is not implemented for the model {name}: set "
                "model.attn_implementation=eager.",
                "model.attn_implementation",
            ) from error
        if existing_path(path):  # a damaged folder makes many libraries fail, each with errors of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MannersError(f"model.name={name} cannot be loaded: {reason}") from error
        raise hub.not_found_error("model", name, "model.name", error) from error
