"""The checked fields of a row that reward models, DPO and KTO train on, beside its conversation."""

from typing import Any

from manners.data.formats.fields import InvalidRow, nested_field, number_field, text_field
from manners.data.types import Message


def reward_fields(metadata: dict, messages: list[Message], score_field: str, paired: bool) -> dict[str, Any]:
    """``score``, ``mismatched``, ``rejected`` and ``margin``, if given; raises InvalidRow for a value of another type.

    In data that is not ``paired``, a field that only happens to be called 'rejected' or 'margin' may hold anything,
    such as a moderator's flag, and is ignored. Raises InvalidRow.
    """
    fields: dict[str, Any] = {}
    if metadata.get(score_field) is not None:
        try:
            fields["score"] = number_field(metadata, score_field)
        except InvalidRow as error:
            raise InvalidRow(f"{error} (if the field is not a score: dataset.score_field=none)") from None
    if metadata.get("mismatched") is not None:
        fields["mismatched"] = parse_mismatched(metadata["mismatched"])
    if metadata.get("rejected") is not None and (paired or isinstance(metadata["rejected"], str)):
        fields["rejected"] = text_field(metadata, "rejected")
        if fields["rejected"] == messages[-1]["content"]:
            raise InvalidRow("field 'rejected' is the same as the chosen reply")
    if metadata.get("margin") is not None and (paired or "rejected" in fields):
        fields["margin"] = number_field(metadata, "margin")
        if fields["margin"] < 0:
            raise InvalidRow(f"field 'margin' must be at least 0, not {fields['margin']:g}")
    if fields and messages[-1]["role"] not in ("assistant", "text"):
        raise InvalidRow(f"field '{next(iter(fields))}' needs a reply, but the conversation does not end with one")
    return fields


def parse_mismatched(value: Any) -> list[dict[str, Any]]:
    """Replies that suit the prompt less, each with its score; raises InvalidRow for any other value.

    Raises InvalidRow.
    """
    if not isinstance(value, list):
        raise InvalidRow("field 'mismatched' must be a list of objects with 'content' and 'score'")
    replies = []
    for i, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise InvalidRow(f"field 'mismatched[{i}]' must be an object with 'content' and 'score'")
        with nested_field(f"mismatched[{i}]"):
            replies.append(entry | {"content": text_field(entry, "content"), "score": number_field(entry, "score")})
    return replies
