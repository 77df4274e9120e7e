"""The sample types: what a dataset is made of, whatever its file looked like.

| ``sample_type`` | class | used by |
| --- | --- | --- |
| ``conversation`` | ``Conversation`` | SFT |
| ``scored`` | ``ScoredReply`` | reward models (regression) |
| ``preference`` | ``PreferencePair`` | reward models (Bradley-Terry), DPO |
| ``unpaired_preference`` | ``LabeledReply`` | KTO |
| ``prompt`` | ``Prompt``, a conversation that ends before the reply | PPO, RLOO, evaluation |

Every row is loaded as a ``Conversation``; the functions here derive the other types from its messages and metadata.
Messages are dicts with ``role`` and ``content``, as ``apply_chat_template`` takes them. Plain text without roles is a
conversation of one message with the role ``text``.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
REWARD_FIELDS = ("score", "mismatched", "rejected", "margin")  # what reward models, DPO and KTO train on


@dataclass(frozen=True)
class Conversation:
    messages: list[Message]
    source: str = ""  # "train.jsonl:17", for messages about this row
    metadata: dict[str, Any] = field(default_factory=dict)  # the row's other fields: category, subject, score, ...
    masked_turns: tuple[int, ...] = ()  # turns without loss whatever their role: they carry loss in another row


@dataclass(frozen=True)
class ScoredReply:
    messages: list[Message]  # up to and including the turn that is answered; [] if the reply is a plain text
    reply: str
    score: float  # in the dataset's own units
    source: str = ""
    by_policy: bool = False  # sampled from a policy rather than written: a mismatched reply with the manner "policy"


@dataclass(frozen=True)
class PreferencePair:
    messages: list[Message]  # up to and including the turn that is answered; [] if the replies are plain texts
    chosen: str
    rejected: str
    margin: float = 0.0  # by how much the chosen reply is better, in the dataset's own units; 0.0 if unknown
    source: str = ""


@dataclass(frozen=True)
class LabeledReply:
    messages: list[Message]  # up to and including the turn that is answered; [] if the reply is a plain text
    reply: str
    label: bool  # whether the reply is desirable
    source: str = ""


@dataclass(frozen=True)
class Prompt:
    messages: list[Message]  # ends with the turn to answer
    reference: str | None = None  # the dataset's own reply, if it has one
    metadata: dict[str, Any] = field(default_factory=dict)


def has_loss(conversation: Conversation, loss_roles: str) -> bool:
    """Whether a turn carries loss."""
    roles = {m["role"] for i, m in enumerate(conversation.messages) if i not in conversation.masked_turns}
    return bool(roles) if loss_roles == "all" else bool(roles & {loss_roles, "text"})


def prompts_of(conversations: Iterable[Conversation], role: str = "assistant", prefix_words: int = 0) -> list[Prompt]:
    """The prompts in conversations: up to the last reply for the assistant, up to each turn for the user.

    Masked turns and end-of-conversation markers give no prompt for the user. A plain text gives its first
    ``prefix_words`` words to be continued, if more words follow; without ``prefix_words`` it gives no prompt.
    """
    prompts = []
    for conversation in conversations:
        messages = conversation.messages
        if messages[0]["role"] == "text":
            prompts += prefix_prompt(conversation, prefix_words)
            continue
        turns = [i for i, message in enumerate(messages) if message["role"] == role]
        if role == "user":
            excluded = {*conversation.masked_turns, conversation.metadata.get("conversation_eos_turn")}
            turns = [i for i in turns if i not in excluded]
        else:
            turns = [i for i in turns[-1:] if i > 0]
        prompts += [Prompt(messages[:i], messages[i]["content"], conversation.metadata) for i in turns]
    return prompts


def has_category(row: Conversation | Prompt) -> bool:
    """Whether a row says which manner its reply should have, by which a style judge judges it."""
    return bool({"category", "categories"} & row.metadata.keys())


def distinct_prompts(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The first of equal prompts of one category: trees and preference data have several replies to one.

    Those of a user who speaks first are all kept: what the people said then is what a model is compared with.
    """
    first: dict[str, Prompt] = {}
    for number, prompt in enumerate(prompts):
        key = [prompt.messages or number, prompt.metadata.get("category")]
        first.setdefault(json.dumps(key, sort_keys=True), prompt)
    return list(first.values())


def prefix_prompt(conversation: Conversation, prefix_words: int) -> list[Prompt]:
    """The first words of a plain text as a prompt, with the rest as its reference; none if nothing follows them."""
    text = conversation.messages[0]["content"]
    prefix = re.match(rf"\s*(?:\S+\s+){{{prefix_words}}}", text) if prefix_words else None
    if not prefix:
        return []
    return [Prompt([{"role": "text", "content": prefix[0].rstrip()}], text[prefix.end() :], conversation.metadata)]


def scored_replies(conversations: Iterable[Conversation]) -> list[ScoredReply]:
    """The last reply of each row with a ``score``, followed by the row's ``mismatched`` replies with their scores."""
    samples = []
    for conversation in conversations:
        if "score" not in conversation.metadata:
            continue
        context, reply = split_last_reply(conversation)
        samples.append(ScoredReply(context, reply, conversation.metadata["score"], conversation.source))
        for other in conversation.metadata.get("mismatched", []):
            by_policy = other.get("manner") == "policy"
            samples.append(ScoredReply(context, other["content"], other["score"], conversation.source, by_policy))
    return samples


def preference_pairs(conversations: Iterable[Conversation]) -> list[PreferencePair]:
    """The last reply of each row over its ``rejected`` one, and over each ``mismatched`` reply of a lower score."""
    pairs = []
    for conversation in conversations:
        metadata, source = conversation.metadata, conversation.source
        context, reply = split_last_reply(conversation)
        if "rejected" in metadata:
            pairs.append(PreferencePair(context, reply, metadata["rejected"], metadata.get("margin", 0.0), source))
        if "score" not in metadata:
            continue
        for other in metadata.get("mismatched", []):
            margin = metadata["score"] - other["score"]
            if margin > 0:
                pairs.append(PreferencePair(context, reply, other["content"], margin, source))
    return pairs


def labeled_replies(conversations: Iterable[Conversation]) -> list[LabeledReply]:
    """The last reply of each row with a ``label``, and of each pair the chosen and the rejected reply.

    A chosen reply is desirable unless its row has a label, a rejected one undesirable. One of several pairs comes once
    for each, as from TRL's ``unpair_preference_dataset``.
    """
    samples = []
    for conversation in conversations:
        label, source = conversation.metadata.get("label"), conversation.source
        if not isinstance(label, bool):  # a field of that name may be something else
            label = None
        if label is not None:
            samples.append(LabeledReply(*split_last_reply(conversation), label, source))
        for pair in preference_pairs([conversation]):
            if label is None:
                samples.append(LabeledReply(pair.messages, pair.chosen, True, source))
            samples.append(LabeledReply(pair.messages, pair.rejected, False, source))
    return samples


def split_last_reply(conversation: Conversation) -> tuple[list[Message], str]:
    """The messages before the last turn, and the last turn's content; no messages for a plain text."""
    return conversation.messages[:-1], conversation.messages[-1]["content"]


def data_digest(conversations: Iterable[Conversation]) -> str:
    """A hash of rows with all their fields, which reward functions may read; of their place in a file alone it is not.

    The same rows in the same order give the same digest.
    """
    sha = hashlib.sha256()
    for conversation in conversations:
        content = {name: value for name, value in vars(conversation).items() if name != "source"}
        sha.update(json.dumps(content, sort_keys=True, default=str).encode())
    return sha.hexdigest()[:16]
