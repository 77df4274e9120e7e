"""Conversations → token ids and labels. The only place that applies a chat template for training.

The whole conversation is rendered and tokenized once, so that the model is trained on the very tokens it will meet;
which tokens carry loss is decided by character spans, found by rendering the conversation with a stand-in for each
trained turn. The stop token after a trained turn carries loss; nothing after it does. Labels never depend on the
padding token, which in many models is the stop token as well.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from manners.data.types import Conversation, Message, PreferencePair
from manners.errors import MannersError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # torch's cross_entropy leaves such labels out
UNLIMITED = 10**9  # tokens
PLACEHOLDER = "\u2af8stand\u2af8in\u2af8"  # no tokenizer or text has it


@dataclass(frozen=True)
class TokenizedExample:
    input_ids: list[int]  # (T,)
    labels: list[int]  # (T,): the token itself where it carries loss, else IGNORE. Not shifted.
    num_truncated: int = 0  # tokens that truncation took away
    position_ids: list[int] | None = None  # (T,): only in packed rows, where they begin anew with each conversation

    @property
    def length(self) -> int:
        """Tokens that its row must have room for."""
        return len(self.input_ids)

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss: the first token is predicted from nothing, so it never does."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


def tokenize(
    chats: Iterable[Conversation], tokenizer: "PreTrainedTokenizerBase", loss_roles: str, max_length: int
) -> list[TokenizedExample]:
    """One Example a chat, in order. Raises MannersError for a template that never stops a reply."""
    chats = list(chats)
    texts, spans = [], []
    for chat in chats:
        try:
            text, trained = render_with_spans(chat, tokenizer, loss_roles)
        except TemplateError as error:  # Gemma's refuses system messages
            raise MannersError(f"{chat.source}: the model's chat template refuses the row: {error}.") from None
        texts.append(text)
        spans.append(trained)
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [
        truncate(ids, labels_from_spans(ids, offsets, trained), max_length)
        for ids, offsets, trained in zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True)
    ]


def tokenize_pairs(
    pairs: Iterable[PreferencePair], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[dict[str, list[int]]]:
    """``prompt_ids``, ``chosen_ids`` and ``rejected_ids`` of each pair, in order: what TRL's DPOTrainer learns from.

    Prompt and reply are the very tokens that ``tokenize`` makes of the conversation that ends with the reply; the reply
    is what carries loss, up to and with its stop token. Of what is too long the oldest of the prompt goes first, the
    same for both replies; then a reply loses its end.
    """
    pairs = list(pairs)
    chosen = [with_reply(p.messages, p.chosen, p.source) for p in pairs]
    rejected = [with_reply(p.messages, p.rejected, p.source) for p in pairs]
    encoded = (tokenize(chats, tokenizer, "assistant", UNLIMITED) for chats in (chosen, rejected))
    return [
        truncate_pair(*split_prompt_reply(c), *split_prompt_reply(r), max_length) for c, r in zip(*encoded, strict=True)
    ]


def truncate_pair(
    prompt: list[int], chosen: list[int], other: list[int], rejected: list[int], max_length: int
) -> dict[str, list[int]]:
    """One pair within ``max_length`` tokens. ``prompt`` stands before ``chosen``, ``other`` before ``rejected``.

    They are one prompt, unless a tokenizer joins its end to the reply: what differs then counts to the replies.
    """
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt, other, strict=False)) if a != b), min(len(prompt), len(other))
    )
    chosen, rejected = prompt[same:] + chosen, other[same:] + rejected
    kept = min(same, max(max_length - max(len(chosen), len(rejected)), max_length // 2))
    room = max_length - kept
    return {"prompt_ids": prompt[same - kept : same], "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]}


def with_reply(messages: list[Message], reply: str, where: str = "") -> Conversation:
    """The conversation that ends with ``reply``; a plain text where nothing was said before it, or only its opening."""
    if messages and messages[0]["role"] == "text":
        return Conversation([{"role": "text", "content": continue_text(messages[0]["content"], reply)}], where)
    end = {"role": "assistant" if messages else "text", "content": reply}
    return Conversation([*messages, end], where)


def continue_text(opening: str, rest: str) -> str:
    """A plain text from its first words and what a model, or its author, wrote after them."""
    return opening + ("" if rest[:1] in tuple(",.;:!?'’") else " ") + rest


def split_prompt_reply(example: TokenizedExample) -> tuple[list[int], list[int]]:
    """What stands before the last reply, and the reply up to and with its stop token."""
    start = last_reply_start(example.labels)
    end = max(i for i, label in enumerate(example.labels) if label != IGNORE_INDEX) + 1
    return example.input_ids[:start], example.input_ids[start:end]


def prompt_text(messages: list[Message], tokenizer: "PreTrainedTokenizerBase", role: str = "assistant") -> str:
    """The conversation, and the opening of the next turn, by ``role``: what the model is given to answer.

    Plain text is given as it is, to be continued. ``messages`` may be empty where the user speaks first.
    """
    if messages and messages[0]["role"] == "text":
        return messages[0]["content"]
    if role == "assistant":
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return turn_affixes(messages, tokenizer, role)[0].rstrip(" ")


def turn_affixes(messages: list[Message], tokenizer: "PreTrainedTokenizerBase", role: str) -> tuple[str, str]:
    """What the template writes before and after the words of the next turn, by ``role``."""
    before, after = render([*messages, {"role": role, "content": PLACEHOLDER}], tokenizer).split(PLACEHOLDER)
    return before, after


def reply_follows(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What stands between a user's words and the reply: "\\nAssistant:" where the template is plain text."""
    opened = prompt_text([{"role": "user", "content": PLACEHOLDER}], tokenizer)
    return opened.split(PLACEHOLDER)[1].rstrip()


def render_with_spans(
    chat: Conversation, tokenizer: "PreTrainedTokenizerBase", loss_roles: str
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation, and the character spans of it that carry loss."""
    if chat.messages[0]["role"] == "text":
        text = chat.messages[0]["content"] + str(tokenizer.eos_token)
        return text, [(0, len(text))]
    text = render(chat.messages, tokenizer)
    spans = []
    for i, message in enumerate(chat.messages):
        if loss_roles in ("all", message["role"]) and i not in chat.masked_turns:
            spans.append(turn_span(text, chat, i, tokenizer))
    return text, spans


def turn_span(text: str, chat: Conversation, i: int, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, int]:
    """Where turn ``i`` stands in ``text``: from the first character the model writes to the end of its stop token."""
    role = chat.messages[i]["role"]
    before, after = turn_affixes(chat.messages[:i], tokenizer, role)
    if role == "assistant" and i > 0:
        opening = prompt_text(chat.messages[:i], tokenizer)  # some templates put the space after "Assistant:" in text
        before = opening if before.startswith(opening) else before
    else:
        before = before.rstrip(" ")  # the space after "User:" belongs to the token of the first word
    done = render(chat.messages[: i + 1], tokenizer)
    if not (text.startswith(before) and text.startswith(done.rstrip())):
        raise MannersError(
            f"{chat.source}: the chat template rewrites earlier turns when later ones follow, so it cannot tell which "
            "tokens are whose. Take another: model.chat_template=chatml or plain."
        )
    return len(before), len(done) - len(after) + stop_length(after, tokenizer, role)


def stop_length(after: str, tokenizer: "PreTrainedTokenizerBase", role: str) -> int:
    """The length of what ends a turn, by the text that follows it: up to the end of its first special token.

    A reply must have one; other turns may end as the template likes ("User: ..." ends with its line).
    """
    stops = [(after.find(t), len(t)) for t in special_tokens(tokenizer) if t in after]
    if not stops and role != "assistant":
        return len(after)
    if not stops:
        raise MannersError(
            "the chat template writes no special token after a turn, so the model would never learn to stop. "
            "Take another: model.chat_template=chatml or plain."
        )
    first, length = min(stops)
    return first + length


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    added = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    return added | set(tokenizer.all_special_tokens)


def render(messages: list[Message], tokenizer: "PreTrainedTokenizerBase") -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def labels_from_spans(ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """A token carries loss when it begins inside a span."""
    return [
        token if any(start <= at < end for start, end in spans) else IGNORE_INDEX
        for token, (at, _) in zip(ids, offsets, strict=True)
    ]


def truncate(ids: list[int], labels: list[int], max_length: int) -> TokenizedExample:
    """At most ``max_length`` tokens: the oldest go first, and a reply too long even so loses its end.

    The last trained turn keeps at least half the length, or all of itself; a reply whose end was cut has no stop
    token, so that nothing false is learned about where to stop.
    """
    cut = len(ids) - max_length
    if cut <= 0:
        return TokenizedExample(ids, labels)
    reply_start = last_reply_start(labels)
    context = min(reply_start, max(max_length - (len(ids) - reply_start), max_length // 2))
    start = reply_start - context
    return TokenizedExample(ids[start : start + max_length], labels[start : start + max_length], cut)


def last_reply_start(labels: list[int]) -> int:
    """The index at which the last run of trained tokens begins."""
    last = max(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
    while last > 0 and labels[last - 1] != IGNORE_INDEX:
        last -= 1
    return last
