"""Self-chat of two small models, and what is saved of it."""

import json

import pytest
from omegaconf import OmegaConf

from manners.chat import self_chat, terminal
from manners.chat.session import Session, add_turn
from manners.chat.streaming import SamplingState, prompt_ids, stream_reply
from manners.config.schema import ChatConfig, TrackingConfig
from tests.chat import checkpoints
from tests.data.files import read


@pytest.fixture(scope="module")
def chat_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("self_chat")
    base_folder = checkpoints.base(folder)
    return {
        role: checkpoints.load(checkpoints.adapter(base_folder, folder / name, seed))
        for seed, (role, name) in enumerate({"user": "curious", "assistant": "blunt"}.items())
    }


@pytest.fixture
def options(tmp_path):
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="manners")
    return lambda **changes: OmegaConf.structured(
        ChatConfig(output_dir=str(tmp_path), tracking=tracking, max_new_tokens=8, turns=4, **changes)
    )


def saved(folder):
    (line,) = (folder / "transcript.jsonl").read_text().splitlines()
    return json.loads(line)


def test_self_chat_conditions_each_reply_on_both_roles(chat_models, options, capsys, monkeypatch):
    monkeypatch.setattr(self_chat.store, "log_evaluation", lambda *_: None)
    folder = self_chat.run_self_chat(options(system="Be brief.", adapter_scale=0.5), chat_models)
    session, sampling_state = Session(system="Be brief."), SamplingState.from_config(options())
    for role in ("user", "assistant", "user", "assistant"):
        chat_models[role].set_scale(0.5)
        prompt = Session(session.turns, "Be brief.", role)
        text = "".join(
            stream_reply(
                chat_models[role],
                prompt_ids(prompt, chat_models[role], 8)[0],
                role,
                sampling_state,
                sampling_state.draw_uniforms(),
            )
        )
        session = add_turn(session, role, text)
    assert saved(folder) == {"messages": session.messages, "user": "curious", "assistant": "blunt"}
    assert len(session.messages) == 5
    printed = [f"{turn['role']}: {turn['content']}" for turn in session.turns]
    assert capsys.readouterr().out.splitlines() == printed
    assert OmegaConf.load(folder / "config.yaml").seed == 1
    (row,) = read(folder / "transcript.jsonl").train
    assert row.messages == session.messages


def test_self_chat_starts_with_prompt_and_colors_roles(chat_models, options, capsys, monkeypatch):
    monkeypatch.setattr(self_chat.store, "log_evaluation", lambda *_: None)
    monkeypatch.setenv("FORCE_COLOR", "1")
    folder = self_chat.run_self_chat(options(prompt="What is a rose?"), chat_models)
    assert saved(folder)["messages"][0] == {"role": "user", "content": "What is a rose?"}
    assert len(saved(folder)["messages"]) == 4
    output = capsys.readouterr().out
    assert "\x1b[36mWhat is a rose?" in output
    assert "\x1b[1;32massistant: " in output
    again = self_chat.run_self_chat(options(prompt="What is a rose?"), chat_models)
    assert again != folder  # nothing is overwritten
    assert saved(again) == saved(folder)


@pytest.mark.parametrize("end", [[], KeyboardInterrupt])
def test_self_chat_keeps_the_turns_before_an_early_end(chat_models, options, monkeypatch, end):
    """After an empty reply, and after Ctrl-C."""

    def fake_stream_reply(_chat_model, _ids, role, *_):
        calls.append(role)
        if len(calls) < 3:
            yield f"{role}s words"
        elif end:
            raise end

    calls, logged = [], []
    monkeypatch.setattr(terminal, "stream_reply", fake_stream_reply)
    monkeypatch.setattr(self_chat.store, "log_evaluation", lambda *args: logged.append(args))
    folder = self_chat.run_self_chat(options(), chat_models)
    assert [m["content"] for m in saved(folder)["messages"]] == ["users words", "assistants words"]
    assert logged[0][3] == {"turns": 2}


def test_self_chat_writes_the_transcript_every_turn(chat_models, options, monkeypatch):
    monkeypatch.setattr(self_chat.store, "log_evaluation", lambda *_: None)
    num_messages = []

    def fake_stream_reply(*_):
        files = list((output_dir / "self_chat").rglob("transcript.jsonl"))
        num_messages.append(len(saved(files[0].parent)["messages"]) if files else 0)
        yield "words"

    output_dir = self_chat.Path(options().output_dir)
    monkeypatch.setattr(terminal, "stream_reply", fake_stream_reply)
    self_chat.run_self_chat(options(), chat_models)
    assert num_messages == [0, 1, 2, 3]


def test_self_chat_logs_the_transcript_to_mlflow(chat_models, options, tmp_path):
    from mlflow import MlflowClient

    folder = self_chat.run_self_chat(options(), chat_models)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("manners").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == folder.name == "curious-and-blunt-1"
    tags = {key: run.data.tags[f"manners.{key}"] for key in ("method", "user", "assistant")}
    assert tags == {"method": "self_chat", "user": "curious", "assistant": "blunt"}
    assert {f.path for f in client.list_artifacts(run.info.run_id)} == {"transcript.jsonl", "config.yaml"}
    client.download_artifacts(run.info.run_id, "transcript.jsonl", str(tmp_path))
    assert saved(tmp_path) == saved(folder)
