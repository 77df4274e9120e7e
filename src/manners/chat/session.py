"""A conversation and its settings as an immutable value, independent of model and terminal."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from manners.data.types import Message
from manners.errors import MannersError

OTHER_ROLE = {"user": "assistant", "assistant": "user"}


@dataclass(frozen=True)
class Session:
    """``turns`` begin with a user turn, as in training data; in the role of the user the model therefore begins."""

    turns: tuple[Message, ...] = ()
    system: str | None = None
    role: str = "assistant"  # of the model
    scale: float = 1.0
    use_base: bool = False  # the base model replies, whatever the scale
    compare: bool = False  # the base model replies as well

    @property
    def human_role(self) -> str:
        """The role that the model does not have."""
        return OTHER_ROLE[self.role]

    @property
    def messages(self) -> list[Message]:
        """The system message and all turns."""
        return [*system_messages(self), *self.turns]

    @property
    def is_model_turn(self) -> bool:
        """Whether the model has the next turn."""
        return self.turns[-1]["role"] != self.role if self.turns else self.role == "user"


def system_messages(session: Session) -> list[Message]:
    """The system message as a list, empty if there is none."""
    return [{"role": "system", "content": session.system}] if session.system else []


def add_turn(session: Session, role: str, content: str) -> Session:
    """The session with one more turn."""
    return replace(session, turns=(*session.turns, {"role": role, "content": content}))


def undo_turn(session: Session) -> Session:
    """The session without the human's last turn and everything after it. Raises MannersError if there is none."""
    last = max((i for i, turn in enumerate(session.turns) if turn["role"] == session.human_role), default=None)
    if last is None:
        raise MannersError("there is no turn of yours to undo yet.")
    return replace(session, turns=session.turns[:last])


def drop_reply(session: Session) -> Session:
    """The session without the model's last turn. Raises MannersError if the last turn is not the model's."""
    if not session.turns or session.is_model_turn:
        raise MannersError("there is no reply to retry yet.")
    return replace(session, turns=session.turns[:-1])


def fit_context(
    session: Session, count_tokens: Callable[[list[Message]], int], max_tokens: int
) -> tuple[list[Message], int]:
    """The messages that fit in ``max_tokens``, and the number of oldest turns that were dropped.

    What remains starts with a user turn, as chat templates expect, unless only the last turn fits. Raises MannersError
    if not even that fits.
    """
    turns = list(session.turns)
    starts = [0, *(i for i, turn in enumerate(turns) if i and turn["role"] == "user"), max(len(turns) - 1, 0)]
    for start in starts:
        messages = [*system_messages(session), *turns[start:]]
        if count_tokens(messages) <= max_tokens:
            return messages, start
    raise MannersError(
        f"the message is longer than the {max_tokens} tokens that max_new_tokens leaves of the model's context: "
        "shorten it."
    )
