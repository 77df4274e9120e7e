"""One turn of a conversation, as OpenAI, ShareGPT and others write it."""

import re
from typing import Any

from manners.data.formats.fields import InvalidRow, is_empty, list_field, nested_field, number_field, text_field
from manners.data.types import ROLES, Message

ROLE_ALIASES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot", "chatbot", "ai"), "assistant"),
    **dict.fromkeys(("developer",), "system"),
}
REASONING_FIELDS = ("reasoning_content", "thinking")  # of a message, as chat templates name them
TURN_FIELDS = {"role", "from", "content", "value", "weight", "train", *REASONING_FIELDS}  # those that are read
MASKED = "masked"  # marks a turn without loss, until the row is a Conversation


def parse_turn(entry: Any, path: str, role_field: str = "role", content_field: str = "content") -> Message:
    """The message in an object with role and content, or from and value; raises InvalidRow for anything else.

    Raises InvalidRow.
    """
    if not isinstance(entry, dict):
        raise InvalidRow(f"field '{path}' must be an object with '{role_field}' and '{content_field}'")
    role_field = next((name for name in ("role", "from") if entry.get(name) is not None), role_field)
    content_field = next((name for name in ("content", "value") if entry.get(name) is not None), content_field)
    with nested_field(path):
        written = text_field(entry, role_field)
        role = written.strip().lower()
        message = {"role": ROLE_ALIASES.get(role, role if role in ROLES else written)}
        if is_empty(entry.get(content_field)) and not (is_empty(entry.get("tool_calls", entry.get("function_call")))):
            raise InvalidRow(f"field '{content_field}' is empty, and tool calls cannot be rendered")
        message["content"] = content_text(entry, content_field)
        reasoning = {name: text_field(entry, name) for name in REASONING_FIELDS if not is_empty(entry.get(name))}
        return message | reasoning | ({MASKED: "true"} if is_masked(entry) else {})


def content_text(entry: dict, name: str) -> str:
    """The content of a message: a text, or OpenAI's list of parts, of which all must be text. Raises InvalidRow."""
    if not isinstance(entry.get(name), list):
        return text_field(entry, name)
    texts = []
    for i, part in enumerate(list_field(entry, name)):
        if isinstance(part, str):
            part = {"text": part}
        if not isinstance(part, dict):
            raise InvalidRow(f"field '{name}[{i}]' must be an object with 'type' and 'text'")
        if str(part.get("type") or "text") not in ("text", "input_text", "output_text"):
            raise InvalidRow(f"field '{name}[{i}]' is a part of type '{part['type']}', and only text can be read")
        with nested_field(f"{name}[{i}]"):
            texts.append(text_field(part, "text"))
    return "\n".join(texts)


def is_masked(entry: dict) -> bool:
    """Whether a message says that it carries no loss: ``"weight": 0`` or ``"train": false``. Raises InvalidRow."""
    if entry.get("weight") is not None and number_field(entry, "weight") not in (0, 1):
        raise InvalidRow(f"field 'weight' must be 0 or 1, not {entry['weight']}")
    if entry.get("train") not in (None, True, False):
        raise InvalidRow("field 'train' must be true or false")
    return 0 in (entry.get("weight"), entry.get("train"))  # False is 0


def parse_turns(row: dict, name: str, role: str) -> list[Message]:
    """The messages in a field that holds a list of them or a single one, or the text of one turn by ``role``."""
    value = row.get(name)
    if isinstance(value, list):
        return [parse_turn(entry, f"{name}[{i}]") for i, entry in enumerate(list_field(row, name))]
    if isinstance(value, dict):
        return [parse_turn(value, name)]
    return [{"role": role, "content": text_field(row, name)}]


def parse_marked_turns(row: dict, name: str) -> list[Message]:
    """The messages in a text with <|user|>, <|assistant|> or <|system|> before each turn.

    Raises InvalidRow for a text without markers and for an empty turn.
    """
    parts = re.split(r"<\|(system|user|assistant)\|>", text_field(row, name))
    if parts[0].strip() or len(parts) < 3:
        raise InvalidRow(f"field '{name}' must begin with <|user|> or <|system|>")
    messages = [{"role": r, "content": c.strip()} for r, c in zip(parts[1::2], parts[2::2], strict=True)]
    for message in messages:
        if not message["content"]:
            raise InvalidRow(f"field '{name}' has an empty <|{message['role']}|> turn")
    return messages
