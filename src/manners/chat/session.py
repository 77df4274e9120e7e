"""A conversation as a value: what was said, and how the next turn is to be made. No model here, and no terminal."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from manners.data.types import Message
from manners.errors import MannersError

OTHER = {"user": "assistant", "assistant": "user"}


@dataclass(frozen=True)
class Session:
    """``turns`` begin with the user's, as training data does. As the user the model therefore speaks first."""

    turns: tuple[Message, ...] = ()
    system: str | None = None
    role: str = "assistant"  # whom the model plays
    scale: float = 1.0
    base: bool = False  # what training changed is off, whatever the scale
    compare: bool = False  # the model before training answers too

    @property
    def person(self) -> str:
        return OTHER[self.role]

    @property
    def messages(self) -> list[Message]:
        return [*system_messages(self), *self.turns]

    @property
    def waits(self) -> bool:
        """Whether it is the model's turn."""
        return self.turns[-1]["role"] != self.role if self.turns else self.role == "user"


def system_messages(session: Session) -> list[Message]:
    return [{"role": "system", "content": session.system}] if session.system else []


def add_turn(session: Session, role: str, words: str) -> Session:
    return replace(session, turns=(*session.turns, {"role": role, "content": words}))


def undo_turn(session: Session) -> Session:
    """Without the person's last turn and all after it."""
    last = max((i for i, turn in enumerate(session.turns) if turn["role"] == session.person), default=None)
    if last is None:
        raise MannersError("you have said nothing yet that could be taken back.")
    return replace(session, turns=session.turns[:last])


def drop_reply(session: Session) -> Session:
    """Without the model's last turn, so that it is its turn again."""
    if not session.turns or session.waits:
        raise MannersError("there is no reply yet that could be made anew.")
    return replace(session, turns=session.turns[:-1])


def fit_context(session: Session, length: Callable[[list[Message]], int], room: int) -> tuple[list[Message], int]:
    """The messages of at most ``room`` tokens, and how many of the oldest turns had to be left out.

    What stays begins with a user's turn, as the template has it, unless that would leave nothing.
    """
    turns = list(session.turns)
    starts = [0, *(i for i, turn in enumerate(turns) if i and turn["role"] == "user"), max(len(turns) - 1, 0)]
    for start in starts:
        messages = [*system_messages(session), *turns[start:]]
        if length(messages) <= room:
            return messages, start
    raise MannersError(f"that is longer than the model can read, {room} tokens: say it in fewer words.")
