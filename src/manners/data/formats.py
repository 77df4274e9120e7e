"""How a row holds its conversation: one parser for each format, and what tells the formats apart.

A parser takes a row and gives its messages, or raises BadRow. What reward models learn from stands beside the
conversation and is checked in ``targets``, whatever the format.
"""

import re
from collections.abc import Callable
from typing import Any

from manners.data import oasst, politeness, preference
from manners.data.fields import BadRow, inside, list_field, marked_turns, number_field, text_field, turn, turns
from manners.data.rows import ROLES, TARGETS, Message


def parse_messages(row: dict) -> list[Message]:
    """{"messages": [{"role": "user", "content": "..."}, ...]}, as OpenAI, TRL and UltraChat have it."""
    return [turn(entry, f"messages[{i}]") for i, entry in enumerate(list_field(row, "messages"))]


def parse_sharegpt(row: dict) -> list[Message]:
    """{"conversations": [{"from": "human", "value": "..."}, ...]}."""
    names = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}
    found = [turn(e, f"conversations[{i}]", "from", "value") for i, e in enumerate(list_field(row, "conversations"))]
    return [{"role": names.get(m["role"], m["role"]), "content": m["content"]} for m in found]


def parse_prompt_completion(row: dict) -> list[Message]:
    """{"prompt": "...", "completion": "..."}, or both as lists of messages, as TRL has it."""
    completion = next((name for name in COMPLETIONS if name in row), "completion")
    return turns(row, "prompt", "user") + turns(row, completion, "assistant")


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
    return marked_turns({"text": text}, "text")


def parse_marked(row: dict) -> list[Message]:
    """{"text": "<|user|>…<|assistant|>…"}: the markers stand before their turns."""
    return marked_turns(row, "text")


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
    "preference": preference.parse,
    "politeness": politeness.parse,
}
OWN_EXTRA: dict[str, Callable[[dict], dict]] = {"preference": preference.extra, "politeness": politeness.extra}
MARKS = {"marked": r"\s*<\|(system|user|assistant)\|>", "guanaco": r"\s*### Human:"}  # how a text of turns begins
PLAIN = ("text", "politeness")  # nobody speaks in these
COMPLETIONS = ("completion", "reply", "response")
FIELDS = ("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "text", "chosen")
CONVERSATION = {
    *FIELDS,
    *COMPLETIONS,
    "Request",
    "context",
}  # these hold the conversation; a row's others are its extra


def detect(row: dict) -> str:
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
        told = next((name for name, mark in MARKS.items() if re.match(mark, str(row["text"]))), None)
        return told or "text"
    raise BadRow(f"no known field in {sorted(row)[:8]}: expected one of {', '.join(FIELDS)}")


def check_messages(messages: list[Message], train_on: str) -> None:
    """An optional system message first, then user and assistant by turns, and someone whose words are learned."""
    talk = messages[1:] if messages[0]["role"] == "system" else messages
    for i, message in enumerate(talk):
        if message["role"] not in ROLES:
            raise BadRow(f"turn {i + 1} has the unknown role '{message['role']}': expected one of {', '.join(ROLES)}")
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            raise BadRow(f"turn {i + 1} is by '{message['role']}' where '{expected}' must speak")
    if train_on != "all" and all(m["role"] != train_on for m in messages):
        raise BadRow(f"there is no '{train_on}' turn to learn from")


def extra_of(row: dict, name: str, messages: list[Message], score_field: str, paired: bool) -> dict:
    """The fields of a row beside its conversation. Those of TARGETS are there only as ``targets`` made them."""
    extra = {k: v for k, v in row.items() if k not in CONVERSATION}
    extra |= OWN_EXTRA[name](row) if name in OWN_EXTRA else {}
    rest = {k: v for k, v in extra.items() if k not in TARGETS}
    return rest | targets(extra, messages, score_field, paired or name == "preference")


def targets(extra: dict, messages: list[Message], score_field: str, paired: bool) -> dict:
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
        found["mismatched"] = mismatched(extra["mismatched"])
    if extra.get("rejected") is not None and (paired or isinstance(extra["rejected"], str)):
        found["rejected"] = text_field(extra, "rejected")
        if found["rejected"] == messages[-1]["content"]:
            raise BadRow("field 'rejected' is the same as the reply that is better")
    if extra.get("margin") is not None and (paired or "rejected" in found):
        found["margin"] = number_field(extra, "margin")
    if found and messages[-1]["role"] not in ("assistant", "text"):
        raise BadRow(f"field '{next(iter(found))}' judges a reply, and the conversation does not end with one")
    return found


def mismatched(value: Any) -> list[dict]:
    if not isinstance(value, list):
        raise BadRow("field 'mismatched' must be a list of objects with 'content' and 'score'")
    found = []
    for i, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise BadRow(f"field 'mismatched[{i}]' must be an object with 'content' and 'score'")
        with inside(f"mismatched[{i}]"):
            found.append(entry | {"content": text_field(entry, "content"), "score": number_field(entry, "score")})
    return found
