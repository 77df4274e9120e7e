"""The chat loop: in a terminal, through a pipe, and with a single prompt."""

import io
import re

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from manners.chat import terminal
from manners.chat.commands import Tools
from manners.chat.session import Session, add_turn
from manners.chat.streaming import SamplingState, prompt_ids, stream_reply
from manners.chat.terminal import Screen, read_terminal, run_session
from manners.config.schema import ChatConfig
from manners.errors import MannersError
from tests.chat import checkpoints

QUESTION, SECOND_QUESTION = "What would you feed to a hare?", "What is a rose?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terminal")
    return checkpoints.adapter(checkpoints.base(folder), folder / "run")


@pytest.fixture(scope="module")
def chat_model(folder):
    return checkpoints.load(folder)


def sampling_state_of(temperature=0.7):
    return SamplingState(12, temperature, torch.Generator().manual_seed(0))


def screen(interactive=False):
    out, err = (Console(file=io.StringIO(), force_terminal=interactive, width=400, **terminal.PLAIN) for _ in range(2))
    return Screen(interactive, interactive, out, err)


def strip_ansi(output):
    """The output without ANSI escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)


def run_lines(chat_model, *lines, on=None, session=None, sampling_state=None):
    """The session after the lines, and the output."""
    on, session = on or screen(), Session() if session is None else session
    session = run_session(
        session,
        lines,
        chat_model,
        Tools(chat_model.set_scale, lambda replies: [0.5] * len(replies)),
        sampling_state or sampling_state_of(),
        on,
    )
    return session, on.out.file.getvalue()


def reply(chat_model, *contents, adapter_scale=1.0, sampling_state=None, role="assistant"):
    """The model's reply to ``contents``, generated without a terminal."""
    session = Session(role=role)
    for i, content in enumerate(contents):
        session = add_turn(session, ("user", "assistant")[i % 2], content)
    sampling_state = sampling_state or sampling_state_of(0.0)
    chat_model.set_scale(adapter_scale)
    return "".join(
        stream_reply(
            chat_model, prompt_ids(session, chat_model, 12)[0], role, sampling_state, sampling_state.draw_uniforms()
        )
    )


def contents(session):
    return [turn["content"] for turn in session.turns]


def test_pipe_prints_only_the_reply_to_each_line(chat_model):
    session, output = run_lines(chat_model, QUESTION, "  ", SECOND_QUESTION, sampling_state=sampling_state_of(0.0))
    first = reply(chat_model, QUESTION)
    second = reply(chat_model, QUESTION, first, SECOND_QUESTION)
    assert contents(session) == [QUESTION, first, SECOND_QUESTION, second]
    assert output == f"{first}\n{second}\n"
    assert first != second


def test_seed_reproduces_the_chat_and_retry_differs(chat_model):
    once, again = (contents(run_lines(chat_model, QUESTION, SECOND_QUESTION)[0]) for _ in range(2))
    assert once == again
    retried = contents(run_lines(chat_model, QUESTION, "/retry")[0])
    assert retried[0] == QUESTION
    assert retried[1] != once[1]
    assert len(retried) == 2


def test_base_and_scale_select_the_model_that_replies(chat_model):
    def reply_with(*commands):
        return contents(run_lines(chat_model, *commands, QUESTION, sampling_state=sampling_state_of(0.0))[0])[-1]

    trained, base, half = (reply(chat_model, QUESTION, adapter_scale=s) for s in (1, 0, 0.5))
    assert len({trained, base, half}) == 3
    assert reply_with() == reply_with("/base", "/base") == trained
    assert reply_with("/base") == reply_with("/scale 0") == base
    assert reply_with("/scale 0.5") == reply_with("/base", "/scale 0.5") == half


def test_compare_shows_both_and_keeps_the_trained_reply(chat_model):
    base, trained = reply(chat_model, QUESTION, adapter_scale=0), reply(chat_model, QUESTION)
    session, output = run_lines(chat_model, "/compare", QUESTION, sampling_state=sampling_state_of(0.0))
    assert contents(session) == [QUESTION, trained]
    assert output.endswith(f"base: {base}\nscale 1: {trained}\n")
    on = screen(interactive=True)
    session, output = run_lines(
        chat_model, "/compare", QUESTION, "/compare", SECOND_QUESTION, on=on, sampling_state=sampling_state_of(0.0)
    )
    columns = strip_ansi(output).split("one model replies again")[0].splitlines()[-1]
    assert re.split("  +", columns.strip()) == [base, trained]
    assert contents(session)[1] == trained


def test_colors_only_in_an_interactive_terminal(chat_model):
    assert "\x1b[32m" in run_lines(chat_model, QUESTION, on=screen(interactive=True))[1]
    assert "\x1b" not in run_lines(chat_model, QUESTION, "/help", "/compare", SECOND_QUESTION)[1]


def test_replies_are_printed_verbatim(chat_model, monkeypatch):
    """Without rich markup and emoji names; in a pipe with tabs."""
    text = "a [bold]b[/] :rose:\tc"
    monkeypatch.setattr(terminal, "stream_reply", lambda *_: iter([text]))
    assert run_lines(chat_model, QUESTION)[1] == text + "\n"
    assert text.expandtabs(8) in strip_ansi(run_lines(chat_model, QUESTION, on=screen(interactive=True))[1])
    assert "a [bold]b[/] :rose:" in strip_ansi(
        run_lines(chat_model, "/compare", QUESTION, on=screen(interactive=True))[1]
    )


def test_errors_end_a_pipe_but_not_an_interactive_chat(chat_model):
    session, output = run_lines(
        chat_model, QUESTION, "/sclae 2", "/scale 9", SECOND_QUESTION, on=screen(interactive=True)
    )
    assert "there is no /sclae. Did you mean '/scale'?" in strip_ansi(output)
    assert "a number from -1 to 2" in strip_ansi(output)
    assert len(session.turns) == 4
    with pytest.raises(MannersError, match="sclae"):
        run_lines(chat_model, "/sclae 2", SECOND_QUESTION)


def test_a_turn_longer_than_the_context_is_rejected(chat_model):
    session, output = run_lines(chat_model, QUESTION, "hare " * 400, on=screen(interactive=True))
    assert "shorten it" in output
    assert len(session.turns) == 2


def test_note_about_dropped_turns_is_printed_once(chat_model):
    on = screen()
    lines = ["The hare eats grass and lives in a field. " * 3] * 9
    session, _ = run_lines(chat_model, *lines, on=on)
    assert len(session.turns) == 18
    assert on.err.file.getvalue().count("oldest turns are left out") == 1


def interrupted(chunks):
    yield from chunks
    raise KeyboardInterrupt


def test_ctrl_c_ends_the_reply_and_not_the_chat(chat_model, monkeypatch):
    monkeypatch.setattr(terminal, "stream_reply", lambda *_: interrupted(["The ", "hare"]))
    session, _ = run_lines(chat_model, QUESTION, on=screen(interactive=True))
    assert contents(session) == [QUESTION, "The hare"]
    with pytest.raises(KeyboardInterrupt):
        run_lines(chat_model, QUESTION)
    both, _ = run_lines(chat_model, "/compare", QUESTION, on=screen(interactive=True))
    assert contents(both) == [QUESTION, "The hare"]


def test_a_turn_with_an_empty_reply_is_removed(chat_model, monkeypatch):
    monkeypatch.setattr(terminal, "stream_reply", lambda *_: interrupted([]))
    on = screen(interactive=True)
    session, output = run_lines(
        chat_model, QUESTION, on=on, session=add_turn(add_turn(Session(), "user", "a"), "assistant", "b")
    )
    assert contents(session) == ["a", "b"]
    assert "empty reply" in output


def test_ctrl_c_cancels_a_command(chat_model):
    def score(_replies):
        raise KeyboardInterrupt

    on, tools = screen(interactive=True), Tools(chat_model.set_scale, score)
    session = run_session(Session(), [QUESTION, "/score", SECOND_QUESTION], chat_model, tools, sampling_state_of(), on)
    assert len(session.turns) == 4


def test_model_in_the_role_of_the_user_begins(chat_model):
    start = Session(role="user")
    session, output = run_lines(chat_model, "Good day.", session=start, sampling_state=sampling_state_of(0.0))
    opening = reply(chat_model, role="user")
    answer = reply(chat_model, opening, "Good day.", role="user")
    assert contents(session) == [opening, "Good day.", answer]
    assert [turn["role"] for turn in session.turns] == ["user", "assistant", "user"]
    assert output == f"{opening}\n{answer}\n"
    assert len(run_lines(chat_model, "/reset", session=start)[0].turns) == 1


def test_read_terminal_ends_at_ctrl_d_and_not_at_ctrl_c(monkeypatch, capsys):
    keys = iter(["one", KeyboardInterrupt, "two", EOFError])

    def fake_input(prompt):
        assert prompt == "assistant> "
        key = next(keys)
        if isinstance(key, str):
            return key
        raise key

    monkeypatch.setattr("builtins.input", fake_input)
    assert list(read_terminal(Session(role="user"))) == ["one", "two"]
    assert "/quit or Ctrl-D quits" in capsys.readouterr().out


class TerminalInput(io.StringIO):
    def isatty(self):
        return True


def options(**changes):
    return OmegaConf.structured(ChatConfig(max_new_tokens=12, do_sample=False, **changes))


def test_run_terminal_answers_a_single_prompt(folder, chat_model, capsys, monkeypatch):
    """A prompt that starts with a slash is no command, and stdin is not read."""
    monkeypatch.setattr("sys.stdin", TerminalInput())
    terminal.run_terminal(options(prompt=f" {QUESTION}\n"), checkpoints.make_ref(folder), chat_model)
    assert capsys.readouterr().out == reply(chat_model, QUESTION) + "\n"
    terminal.run_terminal(options(prompt="/help"), checkpoints.make_ref(folder), chat_model)
    assert capsys.readouterr().out == reply(chat_model, "/help") + "\n"
    terminal.run_terminal(
        options(prompt="Good day.", role="user", adapter_scale=0), checkpoints.make_ref(folder), chat_model
    )
    session = add_turn(Session(role="user"), "assistant", "Good day.")
    chat_model.set_scale(0)
    sampling_state = sampling_state_of(0.0)
    expected = "".join(
        stream_reply(
            chat_model, prompt_ids(session, chat_model, 12)[0], "user", sampling_state, sampling_state.draw_uniforms()
        )
    )
    assert capsys.readouterr().out == expected + "\n"


def test_greeting_names_run_base_and_commands(folder, chat_model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", TerminalInput())
    keys = iter([QUESTION, "/quit"])
    monkeypatch.setattr("builtins.input", lambda _prompt: next(keys))
    terminal.run_terminal(options(), checkpoints.make_ref(folder), chat_model)
    greeting, answer = capsys.readouterr().out.splitlines()
    assert greeting.startswith("run, trained from ")
    assert greeting.endswith(", in the role of the assistant. /help lists the commands, /quit quits.")
    assert answer == reply(chat_model, QUESTION)


def test_run_terminal_rejects_a_scale_without_base_model(monkeypatch, tmp_path):
    folder = checkpoints.base(tmp_path)
    with pytest.raises(MannersError, match="base-qwen2-0 was not trained here"):
        terminal.run_terminal(options(adapter_scale=0.5), checkpoints.make_ref(folder), checkpoints.load(folder))


def test_read_pipe_rejects_input_that_is_not_utf_8(folder, chat_model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    with pytest.raises(MannersError, match="input is not UTF-8 text"):
        terminal.run_terminal(options(), checkpoints.make_ref(folder), chat_model)
