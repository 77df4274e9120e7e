"""What a dataset is made of, whatever its file looked like.

A ``Chat`` is a conversation to learn from (SFT), a ``Scored`` a reply with a score and a ``Pair`` a reply that is
better than another (reward models), a ``Prompt`` a conversation that waits for a reply (PPO, evaluation). Messages
are dicts with ``role`` and ``content``, as ``apply_chat_template`` takes them. Plain text without roles is a chat of
one message with the role ``text``.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
TARGETS = ("score", "mismatched", "rejected", "margin")  # the extra fields that reward models learn from


@dataclass(frozen=True)
class Chat:
    messages: list[Message]
    where: str = ""  # "train.jsonl:17", for messages about this row
    extra: dict[str, Any] = field(default_factory=dict)  # the row's other fields: category, subject, ...
    silent: tuple[int, ...] = ()  # turns that carry no loss, whoever speaks: another row has them already


@dataclass(frozen=True)
class Scored:
    messages: list[Message]  # up to and with the turn that is answered; [] where the reply is a plain text
    reply: str
    score: float  # in the dataset's own units
    where: str = ""


@dataclass(frozen=True)
class Pair:
    messages: list[Message]  # up to and with the turn that is answered; [] where the replies are plain texts
    chosen: str
    rejected: str
    margin: float = 0.0  # by how much the chosen reply is better, in the dataset's own units; 0.0 where it does not say
    where: str = ""


@dataclass(frozen=True)
class Prompt:
    messages: list[Message]  # ends with the turn to answer
    reference: str | None = None  # the reply that the data holds, where it holds one
    extra: dict[str, Any] = field(default_factory=dict)


def prompts(chats: Iterable[Chat], role: str = "assistant", words: int = 0) -> list[Prompt]:
    """What waits for a turn by ``role``: a conversation up to its last reply, or up to each turn by the user.

    The user's first turn answers nothing. Plain text has nobody to answer: its first ``words``, where there are some
    and more follow, wait to be continued.
    """
    found = []
    for chat in chats:
        if chat.messages[0]["role"] == "text":
            found += opening(chat, words)
            continue
        turns = [i for i, m in enumerate(chat.messages) if m["role"] == role]
        if role == "user":
            turns = [i for i in turns if i not in chat.silent and not ends(chat, i)]
        else:
            turns = [i for i in turns[-1:] if i > 0]
        found += [Prompt(chat.messages[:i], chat.messages[i]["content"], chat.extra) for i in turns]
    return found


def opening(chat: Chat, words: int) -> list[Prompt]:
    text = chat.messages[0]["content"]
    first = re.match(rf"\s*(?:\S+\s+){{{words}}}", text) if words else None
    if not first:
        return []
    return [Prompt([{"role": "text", "content": first[0].rstrip()}], text[first.end() :], chat.extra)]


def ends(chat: Chat, i: int) -> bool:
    """Whether turn ``i`` only says that the conversation is over."""
    return chat.extra.get("ends") == i


def scored(chats: Iterable[Chat]) -> list[Scored]:
    """The last reply of each row that has a ``score``, and its ``mismatched`` replies with theirs."""
    found = []
    for chat in chats:
        if "score" not in chat.extra:
            continue
        context, reply = answered(chat)
        found.append(Scored(context, reply, chat.extra["score"], chat.where))
        for other in chat.extra.get("mismatched", []):
            found.append(Scored(context, other["content"], other["score"], chat.where))
    return found


def pairs(chats: Iterable[Chat]) -> list[Pair]:
    """The last reply of each row over its ``rejected`` one, and over each ``mismatched`` one of a lower score."""
    found = []
    for chat in chats:
        context, reply = answered(chat)
        if "rejected" in chat.extra:
            margin = chat.extra.get("margin", 0.0)
            found.append(Pair(context, reply, chat.extra["rejected"], margin, chat.where))
        if "score" not in chat.extra:
            continue
        for other in chat.extra.get("mismatched", []):
            margin = chat.extra["score"] - other["score"]
            if margin > 0:
                found.append(Pair(context, reply, other["content"], margin, chat.where))
    return found


def answered(chat: Chat) -> tuple[list[Message], str]:
    """What was said before the last turn, and that turn: nothing and the whole text for plain text."""
    return chat.messages[:-1], chat.messages[-1]["content"]


def digest(chats: Iterable[Chat]) -> str:
    """A hash of what is learned from: the same rows in the same order give the same digest."""
    sha = hashlib.sha256()
    for chat in chats:
        targets = {name: chat.extra[name] for name in TARGETS if name in chat.extra}
        targets |= {"silent": chat.silent} if chat.silent else {}
        for part in (chat.messages, targets) if targets else (chat.messages,):
            sha.update(json.dumps(part, sort_keys=True, ensure_ascii=False).encode())
    return sha.hexdigest()[:16]
