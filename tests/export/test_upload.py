"""Pushing to the hub, with a stub in place of its API."""

from pathlib import Path

import huggingface_hub
import pytest

from manners.export import __main__ as command
from manners.export import folder as export_folder
from manners.runtime import hub
from tests.exports import export, sft_run

TOKEN = "hf_secretsecret"
ME = {"name": "me", "orgs": [{"name": "team"}], "auth": {"accessToken": {"role": "write"}}}


class Address(str):
    """What ``create_repo`` returns: a text with the repository's full name."""

    repo_id = "me/name"


@pytest.fixture
def calls(monkeypatch):
    """The calls of the stub, in a hub that answers and knows the token."""
    made = []

    class Api:
        def __init__(self, token=None):
            self.token = token

        def whoami(self, token=None):
            made.append(("whoami", token))
            return ME

        def create_repo(self, repo_id, **options):
            made.append(("create_repo", self.token, repo_id, options))
            return Address("https://huggingface.co/me/name")

        def upload_folder(self, *, repo_id, folder_path, **_):
            made.append(("upload_folder", self.token, repo_id, sorted(p.name for p in Path(folder_path).iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    monkeypatch.setattr(hub, "go_offline_if_unreachable", lambda: False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return made


@pytest.fixture
def nothing_written(monkeypatch):
    def refuse(*_):
        raise AssertionError("the export was begun")

    monkeypatch.setattr(export_folder, "write_export", refuse)


@pytest.fixture
def run(tmp_path, tokenizer):
    return sft_run(tmp_path, tokenizer)[0]


def error_of(run, repo_id, capfd):
    """The error, of which no word may be the token."""
    with pytest.raises(SystemExit) as exit_info:
        command.main([str(run), "--out", str(run.parent / "out"), "--hub", repo_id])
    captured = capfd.readouterr()
    assert TOKEN not in str(exit_info.value) + captured.out + captured.err
    return str(exit_info.value)


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("repo_id", ["me/name", "name"])
def test_model_and_card_are_pushed_into_a_private_repository(run, calls, capfd, repo_id):
    out = export(run, "--hub", repo_id)
    assert [call[0] for call in calls] == ["whoami", "create_repo", "upload_folder"]
    assert calls[1] == ("create_repo", TOKEN, repo_id, {"private": True, "exist_ok": True})
    assert calls[2] == ("upload_folder", TOKEN, "me/name", sorted(p.name for p in out.iterdir()))
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= set(calls[2][3])
    printed = capfd.readouterr()
    assert "hub:            https://huggingface.co/me/name" in printed.out
    assert TOKEN not in printed.out + printed.err


def test_nothing_is_pushed_unless_asked(run, calls):
    export(run)
    assert calls == []


@pytest.mark.parametrize("repo_id", ["", "me/", "a/b/c", "me/two words", "me/na--me", "me/x.git", "me/-x"])
def test_invalid_name_is_answered_first(run, calls, nothing_written, capfd, repo_id):
    assert f"HUB={repo_id} is no name for a repository: give NAME or OWNER/NAME" in error_of(run, repo_id, capfd)
    assert calls == []


def test_missing_token_is_answered_first(run, calls, nothing_written, monkeypatch, capfd):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    said = error_of(run, "me/name", capfd)
    assert "no token" in said and said.endswith("hf auth login") and calls == []


def test_unreachable_hub_is_answered_first(run, calls, nothing_written, monkeypatch, capfd):
    monkeypatch.setattr(hub, "go_offline_if_unreachable", lambda: True)
    assert "cannot be reached" in (said := error_of(run, "me/name", capfd))
    assert "hf upload me/name FOLDER . --private" in said
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert error_of(run, "me/name", capfd).endswith("Type: unset HF_HUB_OFFLINE")
    assert calls == []


def test_token_that_the_hub_refuses_is_answered_first(run, calls, nothing_written, monkeypatch, capfd):
    error = ValueError(f"401: {TOKEN} is unknown.\nRequest ID: 1")
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", failing(error))
    said = error_of(run, "me/name", capfd)
    assert "401: *** is unknown. Renew the token" in said and "Request" not in said


def test_name_of_another_owner_is_answered_first(run, calls, nothing_written, capfd):
    said = error_of(run, "you/name", capfd)
    assert "HUB=me/name or HUB=team/name" in said and [call[0] for call in calls] == ["whoami"]


def test_token_that_may_only_read_is_answered_first(run, calls, nothing_written, monkeypatch, capfd):
    reader = ME | {"auth": {"accessToken": {"role": "read"}}}
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", lambda *_, **__: reader)
    assert "the token may only read" in error_of(run, "me/name", capfd)


@pytest.mark.parametrize("method", ["create_repo", "upload_folder"])
def test_failed_push_says_how_to_push_the_folder(run, calls, monkeypatch, capfd, method):
    monkeypatch.setattr(huggingface_hub.HfApi, method, failing(OSError(f"403 for {TOKEN}")))
    said = error_of(run, "me/name", capfd)
    out = run.parent / "out"
    assert f"{out} is written, but the hub did not take it: 403 for ***." in said
    assert said.endswith(f"hf upload me/name {out} . --private")
    assert (out / "model.safetensors").exists()


def test_organization_of_the_owner_is_accepted(run, calls):
    export(run, "--hub", "team/name")
    assert calls[1][2] == "team/name"


def test_stub_has_the_signatures_of_the_library():
    """The calls above mean the same to the real API."""
    import inspect

    create = inspect.signature(huggingface_hub.HfApi.create_repo).parameters
    upload = inspect.signature(huggingface_hub.HfApi.upload_folder).parameters
    assert {"repo_id", "private", "exist_ok"} <= set(create)
    assert {"repo_id", "folder_path", "commit_message"} <= set(upload)
    assert hasattr(huggingface_hub.RepoUrl("https://huggingface.co/me/name"), "repo_id")
