"""One turn of a conversation, as OpenAI, ShareGPT and others write it."""

import re
from collections.abc import Iterable
from typing import Any

from manners.data.formats.fields import InvalidRow, is_empty, list_field, nested_field, text_field
from manners.data.types import ROLES, Conversation, Message

ROLE_ALIASES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot", "chatbot", "ai"), "assistant"),
    **dict.fromkeys(("developer",), "system"),
}
REASONING_FIELDS = ("reasoning_content", "thinking")  # of a message, as chat templates name them
LOSS_FIELDS = {"weight": "0 or 1", **dict.fromkeys(("train", "trainable", "loss"), "true or false")}
TURN_FIELDS = {"role", "from", "content", "value", *LOSS_FIELDS, *REASONING_FIELDS}  # those that are read
PART_FIELDS = {"type", "text", "cache_control"}
TURN_MARKERS = {  # in texts: what stands before each turn, and how such a text begins
    "marked": (r"<\|(system|user|assistant)\|>", r"\s*(<s>|<\|begin_of_text\|>)?\s*<\|(system|user|assistant)\|>"),
    "guanaco": (r"\s*###\s*(Human|Assistant):", r".*###\s*Human:.*###\s*Assistant:"),
    "chatml": (r"<\|im_start\|>\s*(system|user|assistant)\s*\n", r"\s*<\|im_start\|>\s*(system|user|assistant)\s*\n"),
    "hh": (r"(?:^|\n\n)(Human|Assistant):", r"\s*Human:.*\n\nAssistant:"),
}
OTHER_MARKERS = re.compile(  # of templates that no format reads: a text with them is trained as it is
    r"\[/?INST\]|<</?SYS>>|<start_of_turn>|<\|start_header_id\|>|<\|start_of_role\|>|"
    r"^### (?:Instruction|Response|Input):",
    re.MULTILINE,
)
MISSING_VALUES = {"nan", "NaN", "null", "NULL", "None", "N/A", "<NA>", "#N/A"}  # as tables write them
EXAMPLES = {"chatml": "<|im_start|>user", "marked": "<|user|> or <|system|>", "guanaco": "### Human:", "hh": "Human:"}
PROMPT_END = r"\s*(<\|assistant\|>|<\|im_start\|>assistant|###\s*Assistant:|\n\nAssistant:)\s*$"
BOS = r"(?:(?:<s>|<\|begin_of_text\|>|<bos>)\s*)?"  # as rendered texts have them
ENDS = r"(?:\s*(?:</s>|<\|end\|>|<\|endoftext\|>|<\|im_end\|>|<\|eot_id\|>|<eos>))+\s*$"
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
        for name, other in ((role_field, "from"), (content_field, "value")):
            if entry.get(other) not in (None, entry.get(name)):
                raise InvalidRow(f"field '{name}' and its '{other}' differ")
        written = text_field(entry, role_field)
        role = written.strip().lower()
        message = {"role": ROLE_ALIASES.get(role, role if role in ROLES else written)}
        if is_empty(entry.get(content_field)) and not (is_empty(entry.get("tool_calls", entry.get("function_call")))):
            raise InvalidRow(f"field '{content_field}' is empty, and tool calls cannot be rendered")
        message["content"] = content_text(entry, content_field, allow_empty=message["role"] == "system")
        reasoning = {name: text_field(entry, name) for name in REASONING_FIELDS if not is_empty(entry.get(name))}
        return message | reasoning | ({MASKED: "true"} if carries_no_loss(entry) else {})


def content_text(entry: dict, name: str, allow_empty: bool = False) -> str:
    """The content of a message: a text, or OpenAI's list of parts, of which all must be text. Raises InvalidRow."""
    if not isinstance(entry.get(name), list):
        return text_field(entry, name, allow_empty)
    texts = []
    for i, part in enumerate(list_field(entry, name)):
        if isinstance(part, str):
            part = {"text": part}
        if not isinstance(part, dict):
            raise InvalidRow(f"field '{name}[{i}]' must be an object with 'type' and 'text'")
        if str(part.get("type") or "text") not in ("text", "input_text", "output_text"):
            raise InvalidRow(f"field '{name}[{i}]' is a part of type '{part['type']}', and only text can be read")
        if others := [k for k, v in part.items() if k not in PART_FIELDS and not is_empty(v)]:
            raise InvalidRow(f"field '{name}[{i}]' has '{others[0]}' beside its text, and only text can be read")
        with nested_field(f"{name}[{i}]"):
            texts.append(text_field(part, "text", allow_empty=True))
    if not allow_empty and not any(map(str.strip, texts)):
        raise InvalidRow(f"field '{name}' is empty")
    return "".join(texts)  # as chat templates do


def carries_no_loss(entry: dict) -> bool:
    """Whether a message says that it carries no loss: ``"weight": 0`` or ``"train": false``.

    Raises InvalidRow for another value, and for a field of another name that seems to say it, such as "mask": true.
    """
    for name, value in entry.items():
        if name in LOSS_FIELDS and value not in (None, 0, 1):  # True is 1
            raise InvalidRow(f"field '{name}' must be {LOSS_FIELDS[name]}, not {repr(value)[:40]}")
        if name not in TURN_FIELDS and not is_empty(value) and re.search("mask|loss|train|weight", str(name), re.I):
            raise InvalidRow(f"field '{name}' may say what carries loss: name it 'weight', 0 or 1, or leave it out")
    return any(entry.get(name) == 0 for name in LOSS_FIELDS)


def parse_turns(row: dict, name: str, role: str) -> list[Message]:
    """The messages in a field that holds a list of them or a single one, or the text of one turn by ``role``."""
    value = row.get(name)
    if isinstance(value, list):
        return [parse_turn(entry, f"{name}[{i}]") for i, entry in enumerate(list_field(row, name))]
    if isinstance(value, dict):
        return [parse_turn(value, name)]
    format, asked = text_format(value), re.search(PROMPT_END, str(value))  # such as "Assistant:"
    if role == "user" and format != "text" and asked:
        return parse_marked_turns({name: str(value)[: asked.start()]}, name, format)
    return [{"role": role, "content": text_field(row, name)}]


def text_format(text: Any) -> str:
    """The key of ``TURN_MARKERS`` whose markers a text has; "text" for one without."""
    return next((name for name, (_, begin) in TURN_MARKERS.items() if re.match(begin, str(text), re.DOTALL)), "text")


def misread_texts(conversations: Iterable[Conversation]) -> list[str]:
    """One warning for each kind of text that may mean another thing than what is trained, with the first row."""
    found: dict[str, list[str]] = {}
    for conversation in conversations:
        for message in conversation.messages:
            text = message["content"]
            what = ""
            if message["role"] == "text" and (marker := OTHER_MARKERS.search(text)):
                what = f"{marker[0]} is no turn marker that is read, but a part of the text"
            elif text.strip() in MISSING_VALUES:
                what = f"'{text.strip()}' is read as what was said, not as a missing value"
            if what:
                found.setdefault(what, []).append(conversation.source)
    return [f"{what}: {len(set(rows))} rows, the first: {rows[0]}" for what, rows in found.items()]


def parse_marked_turns(row: dict, name: str, format: str) -> list[Message]:
    """The messages in a text with a marker before each turn, which BOS and EOS of a model may surround.

    Raises InvalidRow for a text without markers and for an empty turn.
    """
    marker = TURN_MARKERS[format][0]
    first, *parts = re.split(marker, re.sub(f"^\\s*{BOS}", "", text_field(row, name)))
    if first.strip() or not parts:
        raise InvalidRow(f"field '{name}' must begin with {EXAMPLES[format]}")
    messages = []
    for number, (role, content) in enumerate(zip(parts[::2], parts[1::2], strict=True), 1):
        content = re.sub(ENDS, "", content).rstrip()
        content = content.lstrip("\n") if content.startswith("\n") else content.lstrip()  # code may be indented
        if content:
            messages.append({"role": ROLE_ALIASES.get(role.lower(), role.lower()), "content": content})
        elif role != "system":
            raise InvalidRow(f"turn {number} of field '{name}' is empty")
    if not messages:
        raise InvalidRow(f"field '{name}' has no turn with words")
    return messages
