"""The loop of a conversation: at a terminal, through a pipe, and for one prompt."""

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
from manners.chat.terminal import Screen, run_session, typed_lines
from manners.config.schema import ChatConfig
from manners.errors import MannersError
from tests.chat import checkpoints

QUESTION, OTHER = "What would you feed to a hare?", "What is a rose?"


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


def plain(seen):
    """Without what moves the cursor and colours the text."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)


def run_lines(chat_model, *lines, on=None, session=None, sampling_state=None):
    """The session after the lines, and what was seen of it."""
    on, session = on or screen(), Session() if session is None else session
    after = run_session(
        session, lines, chat_model, Tools(chat_model.turn, lambda replies: [0.5] * len(replies)), sampling_state or sampling_state_of(), on
    )
    return after, on.out.file.getvalue()


def reply(chat_model, *words, adapter_scale=1.0, sampling_state=None, role="assistant"):
    """What the model says after ``words``, asked without a terminal."""
    session = Session(role=role)
    for i, line in enumerate(words):
        session = add_turn(session, ("user", "assistant")[i % 2], line)
    sampling_state = sampling_state or sampling_state_of(0.0)
    chat_model.set_scale(scale)
    return "".join(stream_reply(chat_model, prompt_ids(session, chat_model, 12)[0], role, sampling_state, sampling_state.draw_uniforms()))


def contents(session):
    return [turn["content"] for turn in session.turns]


def test_through_a_pipe_each_line_is_a_turn_and_only_replies_come_out(chat_model):
    after, seen = run_lines(chat_model, QUESTION, "  ", OTHER, sampling_state=sampling_state_of(0.0))
    first = reply(chat_model, QUESTION)
    second = reply(chat_model, QUESTION, first, OTHER)
    assert contents(after) == [QUESTION, first, OTHER, second]
    assert seen == f"{first}\n{second}\n"
    assert first != second


def test_the_same_seed_gives_the_same_conversation_and_retry_another_reply(chat_model):
    once, again = (contents(run_lines(chat_model, QUESTION, OTHER)[0]) for _ in range(2))
    assert once == again
    retried = contents(run_lines(chat_model, QUESTION, "/retry")[0])
    assert retried[0] == QUESTION
    assert retried[1] != once[1]
    assert len(retried) == 2


def test_base_and_strength_decide_who_answers(chat_model):
    def reply_with(*commands):
        return contents(run_lines(chat_model, *commands, QUESTION, sampling_state=sampling_state_of(0.0))[0])[-1]

    trained, base, half = (reply(chat_model, QUESTION, scale=s) for s in (1, 0, 0.5))
    assert len({trained, base, half}) == 3
    assert reply_with() == reply_with("/base", "/base") == trained
    assert reply_with("/base") == reply_with("/scale 0") == base
    assert reply_with("/scale 0.5") == reply_with("/base", "/scale 0.5") == half


def test_compare_shows_both_and_goes_on_with_the_trained_ones_reply(chat_model):
    base, trained = reply(chat_model, QUESTION, adapter_scale=0), reply(chat_model, QUESTION)
    after, seen = run_lines(chat_model, "/compare", QUESTION, sampling_state=sampling_state_of(0.0))
    assert contents(after) == [QUESTION, trained]
    assert seen.endswith(f"base: {base}
scale 1: {trained}\n")
    on = screen(interactive=True)
    after, seen = run_lines(chat_model, "/compare", QUESTION, "/compare", OTHER, on=on, sampling_state=sampling_state_of(0.0))
    columns = plain(seen).split("one model replies again")[0].splitlines()[-1]
    assert re.split("  +", columns.strip()) == [base, trained]
    assert contents(after)[1] == trained


def test_a_person_sees_colours_and_a_pipe_does_not(chat_model):
    assert "\x1b[32m" in run_lines(chat_model, QUESTION, on=screen(interactive=True))[1]
    assert "\x1b" not in run_lines(chat_model, QUESTION, "/help", "/compare", OTHER)[1]


def test_words_are_shown_as_they_are(chat_model, monkeypatch):
    """No markup, no emoji by name; a pipe keeps tabs too."""
    words = "a [bold]b[/] :rose:\tc"
    monkeypatch.setattr(terminal, "stream_reply", lambda *_: iter([words]))
    assert run_lines(chat_model, QUESTION)[1] == words + "\n"
    assert words.expandtabs(8) in plain(run_lines(chat_model, QUESTION, on=screen(interactive=True))[1])
    assert "a [bold]b[/] :rose:" in plain(run_lines(chat_model, "/compare", QUESTION, on=screen(interactive=True))[1])


def test_a_mistake_is_told_and_the_conversation_goes_on_but_a_pipe_ends(chat_model):
    after, seen = run_lines(chat_model, QUESTION, "/sclae 2", "/scale 9", OTHER, on=screen(interactive=True))
    assert "there is no /sclae. Did you mean '/scale'?" in plain(seen)
    assert "a number from -1 to 2" in plain(seen)
    assert len(after.turns) == 4
    with pytest.raises(MannersError, match="sclae"):
        run_lines(chat_model, "/sclae 2", OTHER)


def test_a_line_too_long_to_read_is_taken_back(chat_model):
    after, seen = run_lines(chat_model, QUESTION, "hare " * 400, on=screen(interactive=True))
    assert "shorten it" in seen
    assert len(after.turns) == 2


def test_that_the_oldest_turns_are_left_out_is_said_once_and_nothing_is_forgotten(chat_model):
    on = screen()
    lines = ["The hare eats grass and lives in a field. " * 3] * 9
    after, _ = run_lines(chat_model, *lines, on=on)
    assert len(after.turns) == 18
    assert on.err.file.getvalue().count("oldest turns are left out") == 1


def interrupted(pieces):
    yield from pieces
    raise KeyboardInterrupt


def test_ctrl_c_stops_a_reply_and_not_the_program(chat_model, monkeypatch):
    monkeypatch.setattr(terminal, "stream_reply", lambda *_: interrupted(["The ", "hare"]))
    after, _ = run_lines(chat_model, QUESTION, on=screen(interactive=True))
    assert contents(after) == [QUESTION, "The hare"]
    with pytest.raises(KeyboardInterrupt):
        run_lines(chat_model, QUESTION)
    both, _ = run_lines(chat_model, "/compare", QUESTION, on=screen(interactive=True))
    assert contents(both) == [QUESTION, "The hare"]


def test_what_was_not_answered_at_all_is_taken_back(chat_model, monkeypatch):
    monkeypatch.setattr(terminal, "stream_reply", lambda *_: interrupted([]))
    on = screen(interactive=True)
    after, seen = run_lines(chat_model, QUESTION, on=on, session=add_turn(add_turn(Session(), "user", "a"), "assistant", "b"))
    assert contents(after) == ["a", "b"]
    assert "empty reply" in seen


def test_ctrl_c_while_a_command_works_stops_the_command(chat_model):
    def score(_replies):
        raise KeyboardInterrupt

    on, tools = screen(interactive=True), Tools(chat_model.turn, score)
    after = run_session(Session(), [QUESTION, "/score", OTHER], chat_model, tools, sampling_state_of(), on)
    assert len(after.turns) == 4


def test_as_the_user_the_model_begins(chat_model):
    user = Session(role="user")
    after, seen = run_lines(chat_model, "Good day.", session=user, sampling_state=sampling_state_of(0.0))
    opening = reply(chat_model, role="user")
    answer = reply(chat_model, opening, "Good day.", role="user")
    assert contents(after) == [opening, "Good day.", answer]
    assert [turn["role"] for turn in after.turns] == ["user", "assistant", "user"]
    assert seen == f"{opening}\n{answer}\n"
    assert len(run_lines(chat_model, "/reset", session=user)[0].turns) == 1


def test_what_is_typed_comes_until_ctrl_d_and_ctrl_c_is_no_end(monkeypatch, capsys):
    keys = iter(["one", KeyboardInterrupt, "two", EOFError])

    def keyboard(asked):
        assert asked == "assistant> "
        key = next(keys)
        if isinstance(key, str):
            return key
        raise key

    monkeypatch.setattr("builtins.input", keyboard)
    assert list(typed_lines(Session(role="user"))) == ["one", "two"]
    assert "/quit or Ctrl-D quits" in capsys.readouterr().out


class Keyboard(io.StringIO):
    def isatty(self):
        return True


def options(**changes):
    return OmegaConf.structured(ChatConfig(max_new_tokens=12, do_sample=False, **changes))


def test_one_prompt_is_answered_and_no_more(folder, chat_model, capsys, monkeypatch):
    """A slash begins a command only where commands can be typed, and nobody is_model_turn for a keyboard."""
    monkeypatch.setattr("sys.stdin", Keyboard())
    terminal.run_terminal(options(prompt=f" {QUESTION}\n"), checkpoints.make_ref(folder), chat_model)
    assert capsys.readouterr().out == reply(chat_model, QUESTION) + "\n"
    terminal.run_terminal(options(prompt="/help"), checkpoints.make_ref(folder), chat_model)
    assert capsys.readouterr().out == reply(chat_model, "/help") + "\n"
    terminal.run_terminal(options(prompt="Good day.", role="user", adapter_scale=0), checkpoints.make_ref(folder), chat_model)
    session = add_turn(Session(role="user"), "assistant", "Good day.")
    chat_model.set_scale(0)
    sampling_state = sampling_state_of(0.0)
    expected = "".join(stream_reply(chat_model, prompt_ids(session, chat_model, 12)[0], "user", sampling_state, sampling_state.draw_uniforms()))
    assert capsys.readouterr().out == expected + "\n"


def test_a_person_is_greeted_in_one_line_with_run_base_and_the_way_out(folder, chat_model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", Keyboard())
    keys = iter([QUESTION, "/quit"])
    monkeypatch.setattr("builtins.input", lambda _asked: next(keys))
    terminal.run_terminal(options(), checkpoints.make_ref(folder), chat_model)
    greeting, answer = capsys.readouterr().out.splitlines()
    assert greeting.startswith("run, trained from ")
    assert greeting.endswith("It is the assistant; /help lists what you can type, /quit leaves.")
    assert answer == reply(chat_model, QUESTION)


def test_a_strength_that_cannot_be_is_refused_at_once(monkeypatch, tmp_path):
    plain = checkpoints.base(tmp_path)
    with pytest.raises(MannersError, match="base-qwen2-0 was not trained here"):
        terminal.run_terminal(options(adapter_scale=0.5), checkpoints.make_ref(plain), checkpoints.load(plain))


def test_input_that_is_no_text_is_refused_in_words(folder, chat_model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    with pytest.raises(MannersError, match="input is not UTF-8 text"):
        terminal.run_terminal(options(), checkpoints.make_ref(folder), chat_model)
