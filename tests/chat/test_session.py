"""The conversation as a value."""

from dataclasses import replace

import pytest

from manners.chat.session import Session, add_turn, drop_reply, fit_context, undo_turn
from manners.errors import MannersError


def talk(*words, **changes):
    """Turns by user and assistant, one after the other."""
    session = Session(**changes)
    for i, line in enumerate(words):
        session = add_turn(session, ("user", "assistant")[i % 2], line)
    return session


def words(session):
    return " ".join(turn["content"] for turn in session.turns)


def test_the_system_message_stands_first_and_no_message_is_there_unsaid():
    assert Session().messages == []
    assert talk("a", "b", system="S").messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]


def test_it_is_the_models_turn_when_the_other_has_spoken_and_the_user_begins():
    is_model_turn = [talk(*"abc"[:n]).is_model_turn for n in range(4)]
    assert is_model_turn == [False, True, False, True]
    assert [talk(*"abc"[:n], role="user").is_model_turn for n in range(4)] == [not w for w in is_model_turn]


def test_undo_takes_back_the_persons_last_turn_and_the_reply():
    assert words(undo_turn(talk(*"abcd"))) == "a b"
    assert undo_turn(undo_turn(talk(*"abcd"))).turns == ()
    assert words(undo_turn(talk(*"abc", role="user"))) == "a"
    for empty in (Session(), talk("a", role="user")):
        with pytest.raises(MannersError, match="no turn of yours to undo"):
            undo_turn(empty)


def test_retry_takes_back_the_reply_alone():
    again = drop_reply(talk(*"abcd"))
    assert words(again) == "a b c"
    assert again.is_model_turn
    opening = drop_reply(talk("a", role="user"))
    assert opening.turns == ()
    assert opening.is_model_turn
    for nothing in (Session(), Session(role="user"), talk("a")):
        with pytest.raises(MannersError, match="no reply to"):
            drop_reply(nothing)


def letters(messages):
    """A length that is easy to count: a token for each letter."""
    return sum(len(m["content"]) for m in messages)


def test_the_oldest_turns_are_left_out_and_what_stays_begins_with_a_user():
    session = talk("aaaa", "bbbb", "cc", "dd", "e", system="SS")
    for room, kept, left_out in ((15, "aaaa bbbb cc dd e", 0), (14, "cc dd e", 2), (7, "cc dd e", 2), (6, "e", 4)):
        messages, count = fit_context(session, letters, room)
        assert " ".join(m["content"] for m in messages) == f"SS {kept}"
        assert count == left_out
    with pytest.raises(MannersError, match="context of 2 tokens: shorten it"):
        fit_context(session, letters, 2)


def test_the_last_turn_stays_whoever_spoke_it():
    messages, left_out = fit_context(talk("aaaa", "b", role="user"), letters, 3)
    assert messages == [{"role": "assistant", "content": "b"}]
    assert left_out == 1
    assert fit_context(Session(role="user"), letters, 3) == ([], 0)


def test_a_session_is_a_value():
    session = talk("a")
    add_turn(session, "assistant", "b")
    replace(session, system="S")
    assert session == talk("a")
