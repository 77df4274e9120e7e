"""Preference pairs: {"prompt": ..., "chosen": ..., "rejected": ..., "margin": ...}.

Each is text or a list of messages, as TRL has them. Without a prompt, and in UltraFeedback also with one, chosen and
rejected are whole conversations that differ in their last reply: as messages, as marked text, or with "Human:" and
"Assistant:" before the turns, as Anthropic's HH-RLHF has them.
"""

import re
from typing import Any

from manners.data.formats.fields import InvalidRow, number_field, text_field
from manners.data.formats.turns import parse_marked_turns, parse_turns
from manners.data.types import Message

SIDES = ("chosen", "rejected")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}


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
    if row.get("prompt") is not None:
        prompt = parse_turns(row, "prompt", "user")
        chosen, rejected = (parse_turns(row, name, "assistant") for name in SIDES)
        if not all(has_prompt(side, prompt) for side in (chosen, rejected)):
            chosen, rejected = prompt + chosen, prompt + rejected
    else:
        chosen, rejected = (full_conversation(row, name) for name in SIDES)
    for name, side in zip(SIDES, (chosen, rejected), strict=True):
        if side[-1]["role"] != "assistant":
            raise InvalidRow(f"field '{name}' must end with a turn by 'assistant', not by '{side[-1]['role']}'")
    if chosen == rejected:
        raise InvalidRow("fields 'chosen' and 'rejected' are the same")
    if row.get("prompt") is None and (len(chosen) == 1 or chosen[0] != rejected[0]):
        raise InvalidRow("fields 'chosen' and 'rejected' have no prompt in common, and there is no field 'prompt'")
    if chosen[:-1] != rejected[:-1]:
        raise InvalidRow("fields 'chosen' and 'rejected' differ before their last replies: they answer different turns")
    return chosen, rejected


def has_prompt(side: list[Message], prompt: list[Message]) -> bool:
    """Whether ``side`` includes the prompt's last turn, perhaps after a system message that only ``side`` has."""
    return side[0]["role"] != "assistant" and prompt[-1] in side


def full_conversation(row: dict, name: str) -> list[Message]:
    """A whole conversation: a list of messages, or text with a marker before each turn; else raises InvalidRow.

    Raises InvalidRow.
    """
    if not isinstance(row.get(name), str):
        return parse_turns(row, name, "assistant")
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text_field(row, name).strip())
    if len(parts) > 2 and not parts[0]:
        turns = [{"role": HH_ROLES[r], "content": c.strip()} for r, c in zip(parts[1::2], parts[2::2], strict=True)]
        empty = next((i for i, message in enumerate(turns) if not message["content"]), None)
        if empty is not None:
            raise InvalidRow(f"turn {empty + 1} of field '{name}' is empty")
        return turns
    try:
        return parse_marked_turns(row, name)
    except InvalidRow as error:
        raise InvalidRow(f"{error}, or there must be a field 'prompt'") from None
