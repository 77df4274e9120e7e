"""Slash commands, with a fake adapter scale and reward model that record their calls."""

import json
from dataclasses import dataclass, field

import pytest
from omegaconf import OmegaConf

from manners.chat.commands import COMMANDS, Tools, dispatch, lazy_scorer
from manners.chat.session import Session, add_turn
from manners.errors import MannersError
from manners.pipeline.model_ref import ModelRef
from tests.data.files import read


@dataclass
class FakeTools:
    scales: list[float] = field(default_factory=list)
    scored: list = field(default_factory=list)
    trained: bool = True

    def set_scale(self, scale):
        if not self.trained:
            raise MannersError("no base model")
        self.scales.append(scale)

    def score(self, replies):
        self.scored += replies
        return [0.25 * len(reply) for _, reply in replies]

    @property
    def tools(self):
        return Tools(self.set_scale, self.score)


def make_session(*contents, **fields):
    session = Session(**fields)
    for i, content in enumerate(contents):
        session = add_turn(session, ("user", "assistant")[i % 2], content)
    return session


def run_command(line, session=None, tools=None):
    return dispatch(line, session if session is not None else make_session("a", "b"), (tools or FakeTools()).tools)


def test_base_toggles():
    tools = FakeTools()
    off = run_command("/base", tools=tools).session
    assert off.use_base
    assert tools.scales == [0]  # fails at once if the base cannot be loaded
    assert not run_command("/base", off).session.use_base
    assert run_command("/base", off).message == "scale 1 again"


def test_compare_toggles():
    on = run_command("/compare").session
    assert on.compare
    assert not run_command("/compare", on).session.compare


def test_scale_accepts_minus_one_to_two_and_ends_base():
    for argument, scale in (("0.5", 0.5), ("-1", -1.0), (" 2 ", 2.0), ("0", 0.0)):
        tools = FakeTools()
        session = run_command(f"/scale {argument}", make_session(use_base=True), tools).session
        assert session.scale == scale
        assert not session.use_base
        assert tools.scales == [scale]
    for invalid in ("/scale", "/scale 2.1", "/scale -1.01", "/scale nan", "/scale much"):
        with pytest.raises(MannersError, match=r"scale is 1; change it to a number from -1 to 2, such as /scale 0\.5"):
            run_command(invalid)


@pytest.mark.parametrize("line", ["/base", "/compare", "/scale 0.5"])
def test_commands_without_base_model_raise(line):
    with pytest.raises(MannersError, match="no base model"):
        run_command(line, tools=FakeTools(trained=False))


def test_system_sets_and_removes_the_message():
    session = run_command("/system Be  blunt.").session
    assert session.messages[0] == {"role": "system", "content": "Be  blunt."}
    assert run_command("/system", session).session == make_session("a", "b")


def test_undo_retry_and_reset():
    session = make_session("a", "b", "c", "d", system="S", scale=0.5)
    undone = run_command("/undo", session)
    assert undone.session == make_session("a", "b", system="S", scale=0.5)
    assert undone.message == "removed: c"
    assert run_command("/retry", session).session == make_session("a", "b", "c", system="S", scale=0.5)
    assert run_command("/retry", session).session.is_model_turn
    assert run_command("/reset", session).session == make_session(system="S", scale=0.5)
    assert run_command("/reset", make_session("a", "b", role="user")).session.is_model_turn  # the user begins


def test_save_appends_rows_that_load_splits_reads(tmp_path):
    file = tmp_path / "chat.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}')  # no \n
    first, second = (
        make_session("Où?", 'Say "a,b"\n{c}', "d", "e", system="S"),
        make_session("u", "a", "u2", role="user"),
    )
    assert run_command(f"/save {file}", first).message == f"saved to {file}"
    run_command(f"/save {file}", second)
    rows = read(file).train
    assert [row.messages for row in rows[1:]] == [first.messages, second.messages]
    assert rows[0].messages[0]["content"] == "x"
    assert json.loads(file.read_text().splitlines()[1]).keys() == {"messages"}


def test_save_rejects_suffix_empty_chat_and_missing_folder(tmp_path):
    for line in ("/save", "/save chat", "/save chat.csv"):
        with pytest.raises(MannersError, match=r"rows of a .jsonl file: /save chat.jsonl"):
            run_command(line)
    with pytest.raises(MannersError, match="no reply to save yet"):
        run_command("/save chat.jsonl", make_session("a", role="user"))
    with pytest.raises(MannersError, match=r"cannot be written \(No such file or directory\)"):
        run_command(f"/save {tmp_path / 'no' / 'chat.jsonl'}")


def test_score_passes_each_reply_with_its_context():
    tools = FakeTools()
    message = run_command("/score", make_session("a", "bb", "c", "dddd" * 40, system="S"), tools).message
    system, a, bb, c = make_session("a", "bb", "c", system="S").messages
    assert tools.scored == [([system, a], "bb"), ([system, a, bb, c], "dddd" * 40)]
    first, second = message.splitlines()
    assert first == "   0.50  bb"
    assert second.startswith("  40.00  ")
    assert len(second) < 90
    with pytest.raises(MannersError, match="no reply to"):
        run_command("/score", make_session("a"))


def test_lazy_scorer_reports_missing_reward_models(tmp_path):
    def cfg(reward_from):
        return OmegaConf.create(
            {"reward_from": reward_from, "output_dir": str(tmp_path), "tracking": {"uri": "sqlite:///none"}}
        )

    ref = ModelRef("tiny", "tiny")
    with pytest.raises(MannersError, match=r"none of these runs was trained with a reward model.*reward_from=RUN"):
        lazy_scorer(cfg("auto"), ref, "cpu")([])
    with pytest.raises(MannersError, match=r"start again with reward_from=auto or reward_from=RUN"):
        lazy_scorer(cfg("none"), ref, "cpu")([])
    with pytest.raises(MannersError, match=r"reward_from=nix is neither"):  # at once, not at the first /score
        lazy_scorer(cfg("nix"), ref, "cpu")


def test_help_lists_every_command():
    lines = run_command("/help").message.splitlines()
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert all(len(line.split()) > 2 and len(line) < 100 for line in lines)


def test_quit_ends_the_session():
    assert run_command("/quit").quit
    assert not run_command("/help").quit


def test_dispatch_suggests_the_nearest_command():
    with pytest.raises(MannersError, match=r"there is no /sclae. Did you mean '/scale'\?"):
        run_command("/sclae 2")
    with pytest.raises(MannersError, match=r"there is no /xyzzy. Known: /base, /compare, .*/undo"):
        run_command("/xyzzy")


@pytest.mark.parametrize("line", ["/compare What is a hare?", "/retry now", "/base x"])
def test_text_behind_a_command_without_argument_is_refused(line):
    """It would be swallowed."""
    name = line.split()[0]
    with pytest.raises(MannersError, match=f"^{name} takes no text: type {name} alone"):
        dispatch(line, Session(), tools=None)
