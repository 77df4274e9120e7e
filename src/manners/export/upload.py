"""Push an exported folder to the Hugging Face hub, into a private repository. Imports no torch.

What can be known is asked before the export is written: the name, the token, and whether the hub answers. Merging a
large model takes minutes, which nobody should wait only to read that there is no token.
"""

import os
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from manners.errors import MannersError
from manners.runtime import hub

LOG_IN = ".venv/bin/hf auth login"


def check_target(repo_id: str) -> None:
    """Raises MannersError where ``repo_id`` cannot be pushed to, as far as that shows without creating it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise MannersError(
            f"HUB={repo_id} is no name for a repository: give NAME or OWNER/NAME, of letters, digits, '-', '_' and "
            "'.', such as HUB=me/my-model."
        ) from error
    token = huggingface_hub.get_token()
    if token is None:
        raise MannersError(
            f"HUB={repo_id}: there is no token for the hub on this machine. Make one that may write at "
            f"https://huggingface.co/settings/tokens, then: {LOG_IN}"
        )
    if offline := os.environ.get("HF_HUB_OFFLINE"):  # asked first: the next call sets it
        raise MannersError(
            f"HUB={repo_id}: HF_HUB_OFFLINE={offline} keeps the hub's library offline. Type: unset HF_HUB_OFFLINE"
        )
    if hub.go_offline_if_unreachable():
        raise MannersError(
            f"HUB={repo_id}: the hub cannot be reached. Export without HUB, and push the folder from a machine with "
            f"internet: hf upload {repo_id} FOLDER . --private"
        )
    check_owner(repo_id, identity(repo_id, token))


def identity(repo_id: str, token: str) -> dict[str, Any]:
    """Whose token it is, as the hub says. Raises MannersError for a token that it does not know."""
    try:
        return dict(huggingface_hub.HfApi().whoami(token=token))
    except Exception as error:
        raise MannersError(f"HUB={repo_id}: {reason_without(token, error)}. Renew the token: {LOG_IN}") from error


def check_owner(repo_id: str, who: dict[str, Any]) -> None:
    """Raises MannersError where the token may only read, or ``repo_id`` belongs to someone else."""
    owner, slash, name = repo_id.rpartition("/")
    owners = [who["name"], *(organization["name"] for organization in who.get("orgs", []))]
    if slash and owner not in owners:
        raise MannersError(
            f"HUB={repo_id}: the token is that of {who['name']}, who has no part in {owner}. "
            f"Type HUB={' or HUB='.join(f'{known}/{name}' for known in owners)}, or change the token: {LOG_IN}"
        )
    role = (who.get("auth") or {}).get("accessToken", {}).get("role")
    if role == "read":
        raise MannersError(
            f"HUB={repo_id}: the token may only read. Make one that may write at "
            f"https://huggingface.co/settings/tokens, then: {LOG_IN}"
        )


def push(folder: Path, repo_id: str) -> str:
    """Push all files of ``folder``, and return the address of the repository, which is created private if it is new.

    Raises MannersError where the hub refuses; the folder stays as it is.
    """
    token = huggingface_hub.get_token() or ""
    api = huggingface_hub.HfApi(token=token)
    try:
        created = api.create_repo(repo_id, private=True, exist_ok=True)
        api.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message=f"Export of {folder.name}")
    except Exception as error:
        raise MannersError(
            f"{folder} is written, but the hub did not take it: {reason_without(token, error)}. "
            f"To try again: .venv/bin/hf upload {repo_id} {folder} . --private"
        ) from error
    return str(created)


def reason_without(token: str, error: Exception) -> str:
    """The first line of what ``error`` says, without the token."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
    return line.replace(token, "***") if token else line
