"""A raw row in any format → a Conversation, with the names of the fields that nothing reads."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from manners.data.formats import FORMATS
from manners.data.formats.columns import is_turn
from manners.data.formats.conversations import COMPLETION_FIELDS, CONTEXT_FIELDS, check_messages
from manners.data.formats.fields import InvalidRow, Row, is_empty, text_field
from manners.data.formats.reward_fields import reward_fields
from manners.data.formats.turns import MASKED, TURN_FIELDS
from manners.data.types import REWARD_FIELDS, Conversation, Message
from manners.errors import did_you_mean

LABEL_FIELDS = ("kto_tag", "label")  # LLaMA-Factory's and TRL's
TRUE, FALSE = ("true", "1", "1.0"), ("false", "0", "0.0", "-1", "-1.0")
SYSTEM_FIELDS = ("system", "system_prompt", "system_message")
CONVERSATION_FIELDS = {  # these hold the conversation; all other fields of a row are its metadata
    *("messages", "conversations", "prompt", "instruction", "output", "text", "chosen", "Request"),
    *(*COMPLETION_FIELDS, *CONTEXT_FIELDS),
}
OPTIONAL = {"split", "score", "margin", *LABEL_FIELDS, "mismatched", "history", *SYSTEM_FIELDS, *CONTEXT_FIELDS}
COLUMNS = CONVERSATION_FIELDS | OPTIONAL | {"rejected"}  # what dataset.columns may name
READ_BY_STYLE_JUDGE = {"category", "categories", "origin", "value"}


def parse_row(row: Any, source: str, format: str, cfg: SimpleNamespace) -> tuple[Conversation, list[str]]:
    """The conversation of a row, and the names of its fields that are not used. Raises InvalidRow."""
    row_format, row = FORMATS[format], Row(rename_columns(row, cfg.columns))
    messages = row_format.parse(row)
    reply = messages[-1]["content"]
    if not row_format.plain_text:
        messages = with_system_message(row, check_messages(messages, cfg.loss_roles, cfg.merge_turns))
    masked = tuple(i for i, message in enumerate(messages) if message.pop(MASKED, None))
    others = {name: value for name, value in row.items() if name not in row.read | CONVERSATION_FIELDS}
    of_format = row_format.metadata(row) if row_format.metadata else {}
    others |= of_format
    paired = "rejected" in of_format or "preference" in cfg.sample_types
    rewards = reward_fields(others, messages, cfg.score_field, paired)
    if messages[-1]["content"] != reply and rewards.keys() & {"rejected", "mismatched"}:
        raise InvalidRow("the last reply cannot be joined with the turn before it, as the row has other replies, too")
    metadata = {name: value for name, value in others.items() if name not in REWARD_FIELDS} | rewards
    if (label := desirable(row, messages)) is not None:
        metadata["label"] = label
        masked = masked if label else tuple(range(len(messages)))
    used = row.read | rewards.keys() | of_format.keys() | {cfg.score_field}
    used |= READ_BY_STYLE_JUDGE if cfg.style_judge != "none" else set()
    return Conversation(messages, source, metadata, masked), unused_fields(row, used)


def rename_columns(row: Any, columns: Mapping[str, str | None] | None) -> dict[str, Any]:
    """The row with the names of ``dataset.columns``, our name: the file's, or null for a field to leave out.

    Raises InvalidRow for a row that is no object, or lacks a field that the names make part of the conversation.
    """
    if not isinstance(row, dict):
        raise InvalidRow(f"a row must be a JSON object, not {type(row).__name__}")
    if not columns:
        return row
    moved = {ours: theirs for ours, theirs in columns.items() if theirs in row}
    for ours, theirs in columns.items():
        if theirs is not None and ours not in moved and ours not in OPTIONAL:
            nearest = did_you_mean(theirs, map(str, row)).rstrip(".")
            raise InvalidRow(f"there is no field '{theirs}', which dataset.columns names ({nearest})")
    dropped = {ours for ours, theirs in columns.items() if theirs is None}
    rest = {
        f"{name} (another is named so by dataset.columns)" if name in moved else name: value
        for name, value in row.items()
        if name not in {*moved.values(), *dropped}
    }
    return rest | {ours: row[theirs] for ours, theirs in moved.items()}


def with_system_message(row: Row, messages: list[Message]) -> list[Message]:
    """The messages after the row's own system message, if it has one in a field. Raises InvalidRow for two."""
    name = next((name for name in SYSTEM_FIELDS if not is_empty(dict.get(row, name))), None)
    if name is None:
        return messages
    system = {"role": "system", "content": text_field(row, name)}
    if messages[0]["role"] != "system":
        return [system, *messages]
    if messages[0]["content"].strip() != system["content"].strip():
        raise InvalidRow(f"field '{name}' and turn 1 are two different system messages")
    return messages


def desirable(row: Row, messages: list[Message]) -> bool | None:
    """The label of a reply in unpaired preference data (KTO); None where the field is missing or something else.

    Raises InvalidRow for a ``label`` of 0, 1 or -1: OpenRLHF's are of the reply, FalseQA's of the question; and for a
    ``kto_tag`` that is no label.
    """
    name = next((name for name in LABEL_FIELDS if name in row), "label")
    label = str(dict.get(row, name)).strip().lower()
    if name == "kto_tag" and label not in (*TRUE, *FALSE) and not is_empty(dict.get(row, name)):
        raise InvalidRow(f"field 'kto_tag' is {dict.get(row, name)!r}: it is true or false, 1 or 0")
    if label not in (*TRUE, *FALSE) or messages[-1]["role"] != "assistant":
        return None
    if name == "label" and label not in (TRUE[0], FALSE[0]) and "rejected" not in row:
        raise InvalidRow(
            f"field 'label' is {label}: if it says whether the reply is good, 'dataset.columns={{kto_tag: label}}' "
            "(SFT leaves bad ones out); if not, 'dataset.columns={label: null}'"
        )
    if label not in (TRUE[0], FALSE[0]) and name == "label":
        return None
    row.get(name)
    return label in TRUE


def unused_fields(row: dict[str, Any], used: Iterable[str]) -> list[str]:
    """The names of the fields with a value that nothing reads, those of messages too ("messages[].tool_calls")."""
    names = [name for name, value in row.items() if name not in {*used, "split"} and not is_empty(value)]
    for name, value in row.items():
        for entry in value if isinstance(value, list) else [value]:
            if name in used and is_turn(entry):
                path = f"{name}[]" if isinstance(value, list) else name
                names += [f"{path}.{k}" for k, v in entry.items() if k not in TURN_FIELDS and not is_empty(v)]
    return list(dict.fromkeys(map(str, names)))
