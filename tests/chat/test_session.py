"""The immutable conversation."""

from dataclasses import replace

import pytest

from manners.chat.session import Session, add_turn, drop_reply, fit_context, undo_turn
from manners.errors import MannersError


def make_session(*contents, **fields):
    """Alternating turns of user and assistant."""
    session = Session(**fields)
    for i, content in enumerate(contents):
        session = add_turn(session, ("user", "assistant")[i % 2], content)
    return session


def joined(session):
    return " ".join(turn["content"] for turn in session.turns)


def test_messages_start_with_the_system_message():
    assert Session().messages == []
    assert make_session("a", "b", system="S").messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]


def test_is_model_turn_alternates_and_the_user_begins():
    is_model_turn = [make_session(*"abc"[:n]).is_model_turn for n in range(4)]
    assert is_model_turn == [False, True, False, True]
    assert [make_session(*"abc"[:n], role="user").is_model_turn for n in range(4)] == [not w for w in is_model_turn]


def test_undo_turn_removes_last_human_turn_and_reply():
    assert joined(undo_turn(make_session(*"abcd"))) == "a b"
    assert undo_turn(undo_turn(make_session(*"abcd"))).turns == ()
    assert joined(undo_turn(make_session(*"abc", role="user"))) == "a"
    for session in (Session(), make_session("a", role="user")):
        with pytest.raises(MannersError, match="no turn of yours to undo"):
            undo_turn(session)


def test_drop_reply_removes_only_the_reply():
    dropped = drop_reply(make_session(*"abcd"))
    assert joined(dropped) == "a b c"
    assert dropped.is_model_turn
    opening = drop_reply(make_session("a", role="user"))
    assert opening.turns == ()
    assert opening.is_model_turn
    for session in (Session(), Session(role="user"), make_session("a")):
        with pytest.raises(MannersError, match="no reply to"):
            drop_reply(session)


def count_letters(messages):
    """One token for each letter."""
    return sum(len(m["content"]) for m in messages)


def test_fit_context_drops_oldest_turns_up_to_a_user_turn():
    session = make_session("aaaa", "bbbb", "cc", "dd", "e", system="SS")
    for max_tokens, kept, num_dropped in (
        (15, "aaaa bbbb cc dd e", 0),
        (14, "cc dd e", 2),
        (7, "cc dd e", 2),
        (6, "e", 4),
    ):
        messages, count = fit_context(session, count_letters, max_tokens)
        assert " ".join(m["content"] for m in messages) == f"SS {kept}"
        assert count == num_dropped
    with pytest.raises(MannersError, match="the 2 tokens that max_new_tokens leaves"):
        fit_context(session, count_letters, 2)


def test_fit_context_keeps_the_last_turn_of_either_role():
    messages, num_dropped = fit_context(make_session("aaaa", "b", role="user"), count_letters, 3)
    assert messages == [{"role": "assistant", "content": "b"}]
    assert num_dropped == 1
    assert fit_context(Session(role="user"), count_letters, 3) == ([], 0)


def test_session_is_immutable():
    session = make_session("a")
    add_turn(session, "assistant", "b")
    replace(session, system="S")
    assert session == make_session("a")
