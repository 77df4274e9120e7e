"""Pairs of replies of which one is better: {"prompt": ..., "chosen": ..., "rejected": ..., "margin": ...}.

Each is text or a list of messages, as TRL has them. Without a prompt, and in UltraFeedback also with one, chosen and
rejected are whole conversations that part at their last reply: as messages, as marked text, or with "Human:" and
"Assistant:" before the turns, as Anthropic's HH-RLHF has them.
"""

import re
from typing import Any

from manners.data.formats.fields import BadRow, number_field, parse_marked_turns, parse_turns, text_field
from manners.data.types import Message

SIDES = ("chosen", "rejected")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def parse_preference(row: dict) -> list[Message]:
    """The conversation with the chosen reply at its end."""
    return both_conversations(row)[0]


def preference_metadata(row: dict) -> dict[str, Any]:
    """The rejected reply, and by how much the chosen one is better: 0.0 where the row does not say."""
    margin = number_field(row, "margin") if row.get("margin") is not None else 0.0
    return {"rejected": both_conversations(row)[1][-1]["content"], "margin": margin}


def both_conversations(row: dict) -> tuple[list[Message], list[Message]]:
    """Chosen and rejected, each with all that was said before: the same but for the last reply, which differs."""
    if row.get("prompt") is not None:
        prompt = parse_turns(row, "prompt", "user")
        chosen, rejected = (parse_turns(row, name, "assistant") for name in SIDES)
        if not all(begins_with(prompt, side) for side in (chosen, rejected)):
            chosen, rejected = prompt + chosen, prompt + rejected
    else:
        chosen, rejected = (full_conversation(row, name) for name in SIDES)
    for name, side in zip(SIDES, (chosen, rejected), strict=True):
        if side[-1]["role"] != "assistant":
            raise BadRow(f"field '{name}' must end with a turn by 'assistant', not by '{side[-1]['role']}'")
    if chosen == rejected:
        raise BadRow("fields 'chosen' and 'rejected' are the same")
    if row.get("prompt") is None and (len(chosen) == 1 or chosen[0] != rejected[0]):
        raise BadRow("fields 'chosen' and 'rejected' share no beginning, and there is no field 'prompt'")
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("fields 'chosen' and 'rejected' differ before their last replies, which so answer different turns")
    return chosen, rejected


def begins_with(prompt: list[Message], side: list[Message]) -> bool:
    """Whether the prompt's last turn is in ``side`` already, maybe after a system message that only it has."""
    return side[0]["role"] != "assistant" and prompt[-1] in side


def full_conversation(row: dict, name: str) -> list[Message]:
    """A conversation from its first turn: a list of messages, or text with a mark before each turn."""
    if not isinstance(row.get(name), str):
        return parse_turns(row, name, "assistant")
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text_field(row, name).strip())
    if len(parts) > 2 and not parts[0]:
        found = [{"role": SPEAKERS[w], "content": c.strip()} for w, c in zip(parts[1::2], parts[2::2], strict=True)]
        empty = next((i for i, message in enumerate(found) if not message["content"]), None)
        if empty is not None:
            raise BadRow(f"turn {empty + 1} of field '{name}' is empty")
        return found
    try:
        return parse_marked_turns(row, name)
    except BadRow as bad:
        raise BadRow(f"{bad}, or there must be a field 'prompt'") from None
