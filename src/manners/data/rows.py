"""What a dataset is made of, whatever its file looked like.

A ``Chat`` is a conversation to learn from (SFT), a ``Scored`` a reply with a score (reward models), a ``Prompt`` a
conversation that waits for a reply (PPO, evaluation). Messages are dicts with ``role`` and ``content``, as
``apply_chat_template`` takes them. Plain text without roles is a chat of one message with the role ``text``.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Chat:
    messages: list[Message]
    where: str = ""  # "train.jsonl:17", for messages about this row
    extra: dict[str, Any] = field(default_factory=dict)  # the row's other fields: category, subject, ...


@dataclass(frozen=True)
class Scored:
    messages: list[Message]  # up to and with the turn that is answered
    reply: str
    score: float  # in the dataset's own units
    where: str = ""


@dataclass(frozen=True)
class Prompt:
    messages: list[Message]  # ends with the turn to answer
    reference: str | None = None  # the reply that the data holds, where it holds one
    extra: dict[str, Any] = field(default_factory=dict)


def prompts(chats: Iterable[Chat]) -> list[Prompt]:
    """Each conversation up to its last reply. Plain text has nobody to answer, so it gives none."""
    found = []
    for chat in chats:
        last = max((i for i, m in enumerate(chat.messages) if m["role"] == "assistant"), default=None)
        if last:
            found.append(Prompt(chat.messages[:last], chat.messages[last]["content"], chat.extra))
    return found


def scored(chats: Iterable[Chat]) -> list[Scored]:
    """The fitting reply and the others of each row that has a ``score`` and ``mismatched`` replies."""
    found = []
    for chat in chats:
        if "score" not in chat.extra:
            continue
        context, reply = chat.messages[:-1], chat.messages[-1]["content"]
        found.append(Scored(context, reply, chat.extra["score"], chat.where))
        for other in chat.extra.get("mismatched", []):
            found.append(Scored(context, other["content"], other["score"], chat.where))
    return found


def digest(chats: Iterable[Chat]) -> str:
    """A hash of what is learned from: the same rows in the same order give the same digest."""
    sha = hashlib.sha256()
    for chat in chats:
        sha.update(json.dumps(chat.messages, sort_keys=True, ensure_ascii=False).encode())
    return sha.hexdigest()[:16]
