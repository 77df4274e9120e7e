"""Formats whose rows hold one conversation or one plain text: a parser for each, and the check of the turns' order."""

import re

from manners.data.formats.fields import InvalidRow, list_field, parse_marked_turns, parse_turn, parse_turns, text_field
from manners.data.types import ROLES, Message

COMPLETION_FIELDS = ("completion", "reply", "response")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}


def parse_messages(row: dict) -> list[Message]:
    """{"messages": [{"role": "user", "content": "..."}, ...]}, as OpenAI, TRL and UltraChat have it."""
    return [parse_turn(entry, f"messages[{i}]") for i, entry in enumerate(list_field(row, "messages"))]


def parse_sharegpt(row: dict) -> list[Message]:
    """{"conversations": [{"from": "human", "value": "..."}, ...]}."""
    entries = enumerate(list_field(row, "conversations"))
    turns = [parse_turn(entry, f"conversations[{i}]", "from", "value") for i, entry in entries]
    return [{"role": SHAREGPT_ROLES.get(m["role"], m["role"]), "content": m["content"]} for m in turns]


def parse_prompt_completion(row: dict) -> list[Message]:
    """{"prompt": "...", "completion": "..."}, or both as lists of messages, as TRL has it."""
    completion = next((name for name in COMPLETION_FIELDS if name in row), "completion")
    return parse_turns(row, "prompt", "user") + parse_turns(row, completion, "assistant")


def parse_alpaca(row: dict, input_field: str = "input", output_field: str = "output") -> list[Message]:
    """{"instruction": "...", "input": "...", "output": "..."}; the input may be empty or missing."""
    instruction = text_field(row, "instruction")
    context = text_field(row, input_field, allow_empty=True) if row.get(input_field) is not None else ""
    prompt = f"{instruction}\n\n{context}" if context.strip() else instruction
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": text_field(row, output_field)}]


def parse_dolly(row: dict) -> list[Message]:
    """{"instruction": "...", "context": "...", "response": "..."}; the context may be empty or missing."""
    return parse_alpaca(row, "context", "response")


def parse_guanaco(row: dict) -> list[Message]:
    """{"text": "### Human: ... ### Assistant: ..."}, as openassistant-guanaco has it."""
    markers = {"Human": "<|user|>", "Assistant": "<|assistant|>"}
    text = re.sub(r"\s*###\s*(Human|Assistant):", lambda m: markers[m[1]], text_field(row, "text"))
    return parse_marked_turns({"text": text}, "text")


def parse_marked(row: dict) -> list[Message]:
    """{"text": "<|user|>…<|assistant|>…"}, with a marker before each turn."""
    return parse_marked_turns(row, "text")


def parse_text(row: dict) -> list[Message]:
    """{"text": "..."}, or a line of a .txt file: a plain text without roles, all of which carries loss."""
    return [{"role": "text", "content": text_field(row, "text")}]


def check_messages(messages: list[Message], loss_roles: str) -> None:
    """Raise InvalidRow unless user and assistant alternate after an optional system message and a turn has loss."""
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    for i, message in enumerate(turns):
        if message["role"] not in ROLES:
            raise InvalidRow(
                f"turn {i + 1} has the unknown role '{message['role']}': expected one of {', '.join(ROLES)}"
            )
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            raise InvalidRow(f"turn {i + 1} has the role '{message['role']}': expected '{expected}'")
    if loss_roles != "all" and all(m["role"] != loss_roles for m in messages):
        raise InvalidRow(f"there is no '{loss_roles}' turn to train on")
