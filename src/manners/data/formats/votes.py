"""Votes of people on replies, as ``python -m manners.web`` appends them → preferences, labeled replies, demonstrations.

A row is ``{"vote": …, "id": …, "prompt": [messages], "replies": [{"text": …, "model": …}, …], "annotator": …}``, with
the replies in the order in which they were shown. The file is never rewritten: a row ``{"vote": "undo", "undone": ID}``
takes an earlier vote back, which is why votes are read as a file and not row by row.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from manners.data.formats.fields import InvalidRow, list_field, text_field
from manners.data.formats.turns import parse_turns
from manners.data.types import Conversation, Message
from manners.errors import MannersError, did_you_mean

PREFERENCES = ("first", "second")  # the better of two replies
LABELS = ("good", "bad")  # a verdict on one reply alone
VERDICTS = (*PREFERENCES, "tie", "both_bad", *LABELS, "edit", "skip")
UNDO = "undo"
VOTE_FIELDS = {"vote", "prompt", "replies"}


@dataclass(frozen=True)
class Vote:
    """What one person said of one reply, or of two."""

    verdict: str  # one of ``VERDICTS``
    prompt: list[Message]  # up to and including the turn that is answered
    replies: list[str]  # in the order shown
    models: list[str]  # whose replies they are
    annotator: str = ""
    edited: str = ""  # the first reply as the person would have it, where the verdict is "edit"
    id: str = ""
    source: str = ""  # "votes.jsonl:17"


@dataclass(frozen=True)
class Votes:
    votes: list[Vote] = field(default_factory=list)  # those that were not taken back, in the order of the file
    undone: int = 0
    invalid: list[tuple[str, InvalidRow]] = field(default_factory=list)  # (source, error)


def read_votes(rows: Iterable[tuple[str, Any]]) -> Votes:
    """The votes in ``rows`` of (source, row or InvalidRow), without those that a later row takes back."""
    votes: dict[str, Vote] = {}
    invalid: list[tuple[str, InvalidRow]] = []
    undone = 0
    for source, row in rows:
        try:
            if isinstance(row, InvalidRow):
                raise row
            if not isinstance(row, dict):
                raise InvalidRow(f"a row must be a JSON object, not {type(row).__name__}")
            if row.get("vote") != UNDO:
                vote = parse_vote(row, source)
                if vote.id in votes:
                    raise InvalidRow(f"field 'id': {votes[vote.id].source} has the same id, {vote.id!r}")
                votes[vote.id] = vote
            elif votes.pop(text_field(row, "undone"), None):
                undone += 1
            else:
                raise InvalidRow(f"field 'undone': no earlier row has the id {row['undone']!r}")
        except InvalidRow as error:
            invalid.append((source, error))
    return Votes(list(votes.values()), undone, invalid)


def check_rows(found: Votes, otherwise: str = "") -> None:
    """Raises MannersError for the first row that is no vote."""
    if found.invalid:
        source, why = found.invalid[0]
        raise MannersError(f"{source}: {str(why).rstrip('.?')}: mend or remove that line{otherwise}.")


def parse_vote(row: dict[str, Any], source: str) -> Vote:
    """Raises InvalidRow."""
    verdict = text_field(row, "vote")
    if verdict not in VERDICTS:
        raise InvalidRow(f"field 'vote' is {verdict!r}. {did_you_mean(verdict, (*VERDICTS, UNDO))}")
    prompt = parse_turns(row, "prompt", "user")
    replies = list_field(row, "replies")
    if not all(isinstance(reply, dict) for reply in replies):
        raise InvalidRow("field 'replies' must be a list of objects with 'text' and 'model'")
    texts = [text_field(reply, "text", allow_empty=True) for reply in replies]
    wanted = {1} if verdict in LABELS else {2} if verdict in (*PREFERENCES, "tie", "both_bad") else {1, 2}
    if len(replies) not in wanted:
        raise InvalidRow(f"field 'replies' has {len(replies)} of them, and the vote is {verdict!r}")
    return Vote(
        verdict,
        prompt,
        texts,
        [text_field(reply, "model") for reply in replies],
        str(row.get("annotator", "")),
        text_field(row, "edited") if verdict == "edit" else "",
        text_field(row, "id"),
        source,
    )


def vote_conversations(votes: Iterable[Vote]) -> tuple[list[Conversation], Counter[str]]:
    """What can be trained on in ``votes``, and how many say nothing of that kind, by the reason.

    A preference is the better reply, with the other one as ``rejected``. So is an edited reply, over the one that was
    edited. A verdict on one reply is its ``label``; of two bad replies each has one. Replies that are labeled bad carry
    no loss in SFT.
    """
    conversations, excluded = [], Counter[str]()
    for vote in votes:
        first, other = vote.replies[0], vote.replies[-1]
        rows: list[tuple[str, dict[str, Any]]]
        if vote.verdict in PREFERENCES:
            better, worse = (first, other) if vote.verdict == "first" else (other, first)
            rows = [(better, {"rejected": worse, "margin": 0.0})]
        elif vote.verdict == "edit":
            rows = [(vote.edited, {"rejected": first, "margin": 0.0})]
        elif vote.verdict in (*LABELS, "both_bad"):
            rows = [(reply, {"label": vote.verdict == "good"}) for reply in vote.replies]
        else:
            excluded["a tie" if vote.verdict == "tie" else "skipped"] += 1
            continue
        rows = [(reply, fields) for reply, fields in rows if reply.strip() and reply != fields.get("rejected")]
        if not rows:
            excluded["an empty reply, or twice the same"] += 1
        for reply, fields in rows:
            messages = [*vote.prompt, {"role": "assistant", "content": reply}]
            masked = tuple(range(len(messages))) if fields.get("label") is False else ()
            conversations.append(Conversation(messages, vote.source, {"annotator": vote.annotator} | fields, masked))
    return conversations, excluded
