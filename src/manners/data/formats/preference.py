"""Preference pairs: {"prompt": ..., "chosen": ..., "rejected": ..., "margin": ...}.

Each is text or a list of messages, as TRL has them. Without a prompt, and in UltraFeedback also with one, chosen and
rejected are whole conversations that differ in their last reply: as messages, as marked text, or with "Human:" and
"Assistant:" before the turns, as Anthropic's HH-RLHF has them.
"""

import re
from typing import Any

from manners.data.formats.columns import suggest_columns
from manners.data.formats.conversations import parse_prompt
from manners.data.formats.fields import InvalidRow, number_field
from manners.data.formats.turns import TURN_MARKERS, parse_marked_turns, parse_turns, text_format
from manners.data.types import Message

SIDES = ("chosen", "rejected")
PROMPT_FIELDS = ("prompt", "conversations", "instruction")


def parse_preference(row: dict) -> list[Message]:
    """The conversation that ends with the chosen reply."""
    return both_conversations(row)[0]


def preference_metadata(row: dict) -> dict[str, Any]:
    """The rejected reply, and by how much the chosen one is better: 0.0 if the row has no margin."""
    margin = number_field(row, "margin") if row.get("margin") is not None else 0.0
    return {"rejected": both_conversations(row)[1][-1]["content"], "margin": margin}


def both_conversations(row: dict) -> tuple[list[Message], list[Message]]:
    """The chosen and the rejected conversation; raises InvalidRow unless they differ in the last reply only.

    Raises InvalidRow.
    """
    given = next((name for name in PROMPT_FIELDS if name in row), None)
    if given:
        prompt = parse_prompt(row, given)
        chosen, rejected = (continued(prompt, parse_side(row, name), given, name) for name in SIDES)
    else:
        chosen, rejected = (full_conversation(row, side) for side in SIDES)
    for name, side in zip(SIDES, (chosen, rejected), strict=True):
        if side[-1]["role"] != "assistant":
            raise InvalidRow(f"field '{name}' must end with a turn by 'assistant', not by '{side[-1]['role']}'")
    if chosen == rejected:
        raise InvalidRow("fields 'chosen' and 'rejected' are the same")
    if not given and (len(chosen) == 1 or chosen[0] != rejected[0]):
        raise InvalidRow("fields 'chosen' and 'rejected' have no prompt in common, and there is no field 'prompt'")
    if not same(chosen[:-1], rejected[:-1]):
        raise InvalidRow("fields 'chosen' and 'rejected' differ before their last replies: they answer different turns")
    return chosen, rejected


def continued(prompt: list[Message], side: list[Message], prompt_name: str, name: str) -> list[Message]:
    """The prompt, then the turns of ``side``, which may repeat the prompt or its last turn.

    Raises InvalidRow where ``side`` begins with other words of the user, or has another system message.
    """
    systems, turns = zip(*(split_system(messages) for messages in (prompt, side)), strict=True)
    if all(systems) and not same(*systems):
        raise InvalidRow(f"fields '{prompt_name}' and '{name}' have two different system messages")
    if not turns[1]:
        raise InvalidRow(f"field '{name}' must end with a turn by 'assistant', not by 'system'")
    start = systems[0] or systems[1]
    for repeated in (len(turns[0]), 1):
        if turns[1][0]["role"] == "user" and same(turns[0][-repeated:], turns[1][:repeated]):
            return start + turns[0] + turns[1][repeated:]
    if "assistant" in (turns[1][0]["role"], prompt[-1]["role"]):
        return start + turns[0] + turns[1]
    raise InvalidRow(f"field '{name}' begins with a turn by the user that is not in field '{prompt_name}'")


def parse_side(row: dict, name: str) -> list[Message]:
    """The turns of a reply beside its prompt: messages, a text with markers before each turn, or the reply alone."""
    text = row.get(name)
    format = text_format(text) if isinstance(text, str) else "text"
    if format == "text" or not re.match(TURN_MARKERS[format][0], str(text).lstrip()):  # a reply may quote markers
        return parse_turns(row, name, "assistant")
    return parse_marked_turns(row, name, format)


def split_system(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system message, as a list of one or none, and the other messages."""
    count = int(messages[0]["role"] == "system")
    return messages[:count], messages[count:]


def same(some: list[Message], others: list[Message]) -> bool:
    """Whether messages are the same by role and words, apart from white space around them."""
    return [(m["role"], m["content"].strip()) for m in some] == [(m["role"], m["content"].strip()) for m in others]


def full_conversation(row: dict, name: str) -> list[Message]:
    """A whole conversation: a list of messages, or text with a marker before each turn; else raises InvalidRow.

    Raises InvalidRow.
    """
    if not isinstance(row.get(name), str):
        return parse_turns(row, name, "assistant")
    format = text_format(row[name])
    if format == "text":
        raise InvalidRow(f"field '{name}' has no turns, and there is no field 'prompt'{suggest_columns(row)}")
    return parse_marked_turns(row, name, format)
