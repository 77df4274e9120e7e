"""What a dataset is made of, whatever its file looked like.

A ``Conversation`` is learned from by SFT; a ``ScoredReply`` and a ``PreferencePair`` by reward models, the latter by
DPO too; a ``Prompt`` is a conversation that waits for a reply (PPO, evaluation). Messages are dicts with ``role`` and
``content``, as ``apply_chat_template`` takes them. Plain text without roles is a conversation of one message with the
role ``text``.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
REWARD_FIELDS = ("score", "mismatched", "rejected", "margin")  # the extra fields that reward models learn from


@dataclass(frozen=True)
class Conversation:
    messages: list[Message]
    source: str = ""  # "train.jsonl:17", for messages about this row
    metadata: dict[str, Any] = field(default_factory=dict)  # the row's other fields: category, subject, ...
    masked_turns: tuple[int, ...] = ()  # turns that carry no loss, whoever speaks: another row has them already


@dataclass(frozen=True)
class ScoredReply:
    messages: list[Message]  # up to and with the turn that is answered; [] where the reply is a plain text
    reply: str
    score: float  # in the dataset's own units
    source: str = ""


@dataclass(frozen=True)
class PreferencePair:
    messages: list[Message]  # up to and with the turn that is answered; [] where the replies are plain texts
    chosen: str
    rejected: str
    margin: float = 0.0  # by how much the chosen reply is better, in the dataset's own units; 0.0 where it does not say
    source: str = ""


@dataclass(frozen=True)
class Prompt:
    messages: list[Message]  # ends with the turn to answer
    reference: str | None = None  # the reply that the data holds, where it holds one
    metadata: dict[str, Any] = field(default_factory=dict)


def prompts_of(chats: Iterable[Conversation], role: str = "assistant", words: int = 0) -> list[Prompt]:
    """What waits for a turn by ``role``: a conversation up to its last reply, or up to each turn by the user.

    The user's first turn answers nothing. Plain text has nobody to answer: its first ``words``, where there are some
    and more follow, wait to be continued.
    """
    found = []
    for chat in chats:
        if chat.messages[0]["role"] == "text":
            found += prefix_prompt(chat, words)
            continue
        turns = [i for i, m in enumerate(chat.messages) if m["role"] == role]
        if role == "user":
            turns = [i for i in turns if i not in chat.masked_turns and not is_conversation_eos(chat, i)]
        else:
            turns = [i for i in turns[-1:] if i > 0]
        found += [Prompt(chat.messages[:i], chat.messages[i]["content"], chat.metadata) for i in turns]
    return found


def prefix_prompt(chat: Conversation, words: int) -> list[Prompt]:
    text = chat.messages[0]["content"]
    first = re.match(rf"\s*(?:\S+\s+){{{words}}}", text) if words else None
    if not first:
        return []
    return [Prompt([{"role": "text", "content": first[0].rstrip()}], text[first.end() :], chat.metadata)]


def is_conversation_eos(chat: Conversation, i: int) -> bool:
    """Whether turn ``i`` only says that the conversation is over."""
    return chat.metadata.get("ends") == i


def scored_replies(chats: Iterable[Conversation]) -> list[ScoredReply]:
    """The last reply of each row that has a ``score``, and its ``mismatched`` replies with theirs."""
    found = []
    for chat in chats:
        if "score" not in chat.metadata:
            continue
        context, reply = split_last_reply(chat)
        found.append(ScoredReply(context, reply, chat.metadata["score"], chat.source))
        for other in chat.metadata.get("mismatched", []):
            found.append(ScoredReply(context, other["content"], other["score"], chat.source))
    return found


def preference_pairs(chats: Iterable[Conversation]) -> list[PreferencePair]:
    """The last reply of each row over its ``rejected`` one, and over each ``mismatched`` one of a lower score."""
    found = []
    for chat in chats:
        context, reply = split_last_reply(chat)
        if "rejected" in chat.metadata:
            margin = chat.metadata.get("margin", 0.0)
            found.append(PreferencePair(context, reply, chat.metadata["rejected"], margin, chat.source))
        if "score" not in chat.metadata:
            continue
        for other in chat.metadata.get("mismatched", []):
            margin = chat.metadata["score"] - other["score"]
            if margin > 0:
                found.append(PreferencePair(context, reply, other["content"], margin, chat.source))
    return found


def split_last_reply(chat: Conversation) -> tuple[list[Message], str]:
    """What was said before the last turn, and that turn: nothing and the whole text for plain text."""
    return chat.messages[:-1], chat.messages[-1]["content"]


def data_digest(chats: Iterable[Conversation]) -> str:
    """A hash of what is learned from: the same rows in the same order give the same digest."""
    sha = hashlib.sha256()
    for chat in chats:
        targets = {name: chat.metadata[name] for name in REWARD_FIELDS if name in chat.metadata}
        targets |= {"silent": chat.masked_turns} if chat.masked_turns else {}
        for part in (chat.messages, targets) if targets else (chat.messages,):
            sha.update(json.dumps(part, sort_keys=True, ensure_ascii=False).encode())
    return sha.hexdigest()[:16]
