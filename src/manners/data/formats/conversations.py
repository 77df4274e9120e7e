"""How a row holds its conversation: one parser for each format, and what tells the formats apart.

A parser takes a row and gives its messages, or raises BadRow. What reward models learn from stands beside the
conversation and is checked in ``reward_fields``, whatever the format.
"""

import re
from collections.abc import Callable
from typing import Any

from manners.data.formats import oasst, politeness, preference
from manners.data.formats.fields import (
    BadRow,
    list_field,
    nested_field,
    number_field,
    parse_marked_turns,
    parse_turn,
    parse_turns,
    text_field,
)
from manners.data.types import REWARD_FIELDS, ROLES, Message


def parse_messages(row: dict) -> list[Message]:
    """{"messages": [{"role": "user", "content": "..."}, ...]}, as OpenAI, TRL and UltraChat have it."""
    return [parse_turn(entry, f"messages[{i}]") for i, entry in enumerate(list_field(row, "messages"))]


def parse_sharegpt(row: dict) -> list[Message]:
    """{"conversations": [{"from": "human", "value": "..."}, ...]}."""
    names = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}
    found = [
        parse_turn(e, f"conversations[{i}]", "from", "value") for i, e in enumerate(list_field(row, "conversations"))
    ]
    return [{"role": names.get(m["role"], m["role"]), "content": m["content"]} for m in found]


def parse_prompt_completion(row: dict) -> list[Message]:
    """{"prompt": "...", "completion": "..."}, or both as lists of messages, as TRL has it."""
    completion = next((name for name in COMPLETIONS if name in row), "completion")
    return parse_turns(row, "prompt", "user") + parse_turns(row, completion, "assistant")


def parse_alpaca(row: dict, more: str = "input", answer: str = "output") -> list[Message]:
    """{"instruction": "...", "input": "...", "output": "..."}; the input may be empty or missing."""
    asked = text_field(row, "instruction")
    given = text_field(row, more, empty=True) if row.get(more) is not None else ""
    user = f"{asked}\n\n{given}" if given.strip() else asked
    return [{"role": "user", "content": user}, {"role": "assistant", "content": text_field(row, answer)}]


def parse_dolly(row: dict) -> list[Message]:
    """{"instruction": "...", "context": "...", "response": "..."}; the context may be empty."""
    return parse_alpaca(row, "context", "response")


def parse_guanaco(row: dict) -> list[Message]:
    """{"text": "### Human: ... ### Assistant: ..."}, as openassistant-guanaco has it."""
    marks = {"Human": "<|user|>", "Assistant": "<|assistant|>"}
    text = re.sub(r"\s*###\s*(Human|Assistant):", lambda m: marks[m[1]], text_field(row, "text"))
    return parse_marked_turns({"text": text}, "text")


def parse_marked(row: dict) -> list[Message]:
    """{"text": "<|user|>…<|assistant|>…"}: the markers stand before their turns."""
    return parse_marked_turns(row, "text")


def parse_text(row: dict) -> list[Message]:
    """{"text": "..."}, or a line of a .txt file: all of it is learned, nobody speaks."""
    return [{"role": "text", "content": text_field(row, "text")}]


FORMATS: dict[str, Callable[[dict], list[Message]]] = {
    "messages": parse_messages,
    "prompt_completion": parse_prompt_completion,
    "marked": parse_marked,
    "sharegpt": parse_sharegpt,
    "alpaca": parse_alpaca,
    "dolly": parse_dolly,
    "guanaco": parse_guanaco,
    "text": parse_text,
    "preference": preference.parse_preference,
    "politeness": politeness.parse_politeness,
}
FORMAT_METADATA: dict[str, Callable[[dict], dict]] = {
    "preference": preference.preference_metadata,
    "politeness": politeness.politeness_metadata,
}
TEXT_MARKERS = {
    "marked": r"\s*<\|(system|user|assistant)\|>",
    "guanaco": r"\s*### Human:",
}  # how a text of turns begins
PLAIN_TEXT_FORMATS = ("text", "politeness")  # nobody speaks in these
COMPLETIONS = ("completion", "reply", "response")
FIELDS = ("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "text", "chosen")
CONVERSATION_FIELDS = {
    *FIELDS,
    *COMPLETIONS,
    "Request",
    "context",
}  # these hold the conversation; a row's others are its extra


def detect_row_format(row: dict) -> str:
    """The format of a row, by the fields that it has. Text comes last: Alpaca's rows hold theirs rendered, too.

    A chosen reply comes first: UltraFeedback's rows hold the better conversation a second time, as messages.
    """
    signs = {
        "chosen": "preference",
        "messages": "messages",
        "conversations": "sharegpt",
        "completion": "prompt_completion",
        "output": "alpaca",
        "Normalized Score": "politeness",
    }
    for sign, name in signs.items():
        if sign in row:
            return name
    if oasst.looks_like(row):
        return "oasst"
    if "prompt" in row and any(name in row for name in COMPLETIONS):
        return "prompt_completion"
    if "instruction" in row and "response" in row:
        return "dolly"
    if "text" in row:
        told = next((name for name, mark in TEXT_MARKERS.items() if re.match(mark, str(row["text"]))), None)
        return told or "text"
    raise BadRow(f"no known field in {sorted(row)[:8]}: expected one of {', '.join(FIELDS)}")


def check_messages(messages: list[Message], loss_roles: str) -> None:
    """An optional system message first, then user and assistant by turns, and someone whose words are learned."""
    talk = messages[1:] if messages[0]["role"] == "system" else messages
    for i, message in enumerate(talk):
        if message["role"] not in ROLES:
            raise BadRow(f"turn {i + 1} has the unknown role '{message['role']}': expected one of {', '.join(ROLES)}")
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            raise BadRow(f"turn {i + 1} is by '{message['role']}' where '{expected}' must speak")
    if loss_roles != "all" and all(m["role"] != loss_roles for m in messages):
        raise BadRow(f"there is no '{loss_roles}' turn to learn from")


def row_metadata(row: dict, name: str, messages: list[Message], score_field: str, paired: bool) -> dict:
    """The fields of a row beside its conversation. Those of TARGETS are there only as ``reward_fields`` made them."""
    extra = {k: v for k, v in row.items() if k not in CONVERSATION_FIELDS}
    extra |= FORMAT_METADATA[name](row) if name in FORMAT_METADATA else {}
    rest = {k: v for k, v in extra.items() if k not in REWARD_FIELDS}
    return rest | reward_fields(extra, messages, score_field, paired or name == "preference")


def reward_fields(extra: dict, messages: list[Message], score_field: str, paired: bool) -> dict:
    """What reward models learn from, checked: ``score``, ``mismatched``, ``rejected`` and ``margin``, where given.

    In data that is not ``paired``, a field that only happens to be called 'rejected' or 'margin' may hold anything,
    such as a moderator's mark, and is left out.
    """
    found: dict[str, Any] = {}
    if extra.get(score_field) is not None:
        try:
            found["score"] = number_field(extra, score_field)
        except BadRow as bad:
            raise BadRow(f"{bad} (if it is no score: dataset.score_field=none)") from None
    if extra.get("mismatched") is not None:
        found["mismatched"] = parse_mismatched(extra["mismatched"])
    if extra.get("rejected") is not None and (paired or isinstance(extra["rejected"], str)):
        found["rejected"] = text_field(extra, "rejected")
        if found["rejected"] == messages[-1]["content"]:
            raise BadRow("field 'rejected' is the same as the reply that is better")
    if extra.get("margin") is not None and (paired or "rejected" in found):
        found["margin"] = number_field(extra, "margin")
    if found and messages[-1]["role"] not in ("assistant", "text"):
        raise BadRow(f"field '{next(iter(found))}' judges a reply, and the conversation does not end with one")
    return found


def parse_mismatched(value: Any) -> list[dict]:
    if not isinstance(value, list):
        raise BadRow("field 'mismatched' must be a list of objects with 'content' and 'score'")
    found = []
    for i, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise BadRow(f"field 'mismatched[{i}]' must be an object with 'content' and 'score'")
        with nested_field(f"mismatched[{i}]"):
            found.append(entry | {"content": text_field(entry, "content"), "score": number_field(entry, "score")})
    return found
