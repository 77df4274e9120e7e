"""Conversations → token ids and labels. The only place that applies a chat template for training.

The whole conversation is rendered and tokenized once, so that the model is trained on the very tokens that it sees in
inference. Which tokens carry loss is decided by character spans, found by rendering the conversation with a
placeholder for each trained turn. The stop token after a trained turn carries loss; nothing after it does. Labels never
depend on the padding token, which in many models is also the stop token.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from manners.data.types import Conversation, Message, PreferencePair
from manners.errors import MannersError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # torch's cross_entropy ignores such labels
UNLIMITED = 10**9  # tokens
PLACEHOLDER = "\u2af8stand\u2af8in\u2af8"  # occurs in no text or vocabulary


@dataclass(frozen=True)
class TokenizedExample:
    input_ids: list[int]  # (T,)
    labels: list[int]  # (T,): the token id where it carries loss, else IGNORE_INDEX. Not shifted.
    num_truncated: int = 0  # tokens dropped by truncation
    position_ids: list[int] | None = None  # (T,): only in packed rows, where they restart with each conversation

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return len(self.input_ids)

    @property
    def tokens(self) -> int:
        """Tokens that the model reads."""
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss: never the first, since nothing precedes it to predict it from."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


def tokenize(
    conversations: Iterable[Conversation], tokenizer: "PreTrainedTokenizerBase", loss_roles: str, max_length: int
) -> list[TokenizedExample]:
    """One example for each conversation, in order; the turns of ``loss_roles`` carry loss.

    Raises MannersError for a row that the chat template refuses, and for a template that cannot be trained with.
    """
    conversations = list(conversations)
    check_tokenizer(tokenizer, conversations)
    texts, spans = [], []
    for conversation in conversations:
        try:
            text, loss_spans = render_with_spans(conversation, tokenizer, loss_roles)
        except TemplateError as error:  # Gemma's refuses system messages
            raise MannersError(f"{conversation.source}: the model's chat template refuses the row: {error}.") from None
        texts.append(text)
        spans.append(loss_spans)
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [
        truncate(ids, labels_from_spans(ids, offsets, loss_spans), max_length)
        for ids, offsets, loss_spans in zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True)
    ]


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", conversations: list[Conversation]) -> None:
    """Raise MannersError for a tokenizer without offsets, and for one without EOS, which ends a plain text."""
    if not tokenizer.is_fast:
        raise MannersError(
            f"{type(tokenizer).__name__} gives no offsets, by which the tokens that carry loss are found: choose a "
            "model.name with a fast tokenizer."
        )
    if tokenizer.eos_token is None and any(c.messages[0]["role"] == "text" for c in conversations):
        raise MannersError(
            "the tokenizer has no EOS token, which ends a plain text: set its eos_token, or another model.name."
        )


def tokenize_pairs(
    pairs: Iterable[PreferencePair], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[dict[str, list[int]]]:
    """``prompt_ids``, ``chosen_ids`` and ``rejected_ids`` of each pair, in order: the columns of TRL's DPOTrainer.

    The tokens are those that ``tokenize`` gives for the conversation that ends with the reply; the reply is the part
    that carries loss, including its stop token. Truncation drops the oldest tokens of the prompt, the same for both
    replies, and then the end of a reply.
    """
    pairs = list(pairs)
    chosen = [with_reply(p.messages, p.chosen, p.source) for p in pairs]
    rejected = [with_reply(p.messages, p.rejected, p.source) for p in pairs]
    encoded = (tokenize(side, tokenizer, "assistant", UNLIMITED) for side in (chosen, rejected))
    return [
        truncate_pair(*split_prompt_reply(c), *split_prompt_reply(r), max_length) for c, r in zip(*encoded, strict=True)
    ]


def truncate_pair(
    chosen_prompt: list[int], chosen: list[int], rejected_prompt: list[int], rejected: list[int], max_length: int
) -> dict[str, list[int]]:
    """One pair within ``max_length`` tokens.

    The two prompts are the same, unless the tokenizer merges their end with the reply: the tokens from the first
    difference on then belong to the replies.
    """
    from trl.data_utils import common_prefix_length

    shared = common_prefix_length(chosen_prompt, rejected_prompt)
    prompt = chosen_prompt[:shared]
    chosen, rejected = chosen_prompt[shared:] + chosen, rejected_prompt[shared:] + rejected
    kept = min(shared, max(max_length - max(len(chosen), len(rejected)), max_length // 2))
    max_reply = max_length - kept
    return {
        "prompt_ids": prompt[shared - kept :],
        "chosen_ids": chosen[:max_reply],
        "rejected_ids": rejected[:max_reply],
    }


def with_reply(messages: list[Message], reply: str, source: str = "") -> Conversation:
    """The conversation that ends with ``reply``: a plain text if ``messages`` is empty or a text to be continued."""
    if messages and messages[0]["role"] == "text":
        separator = "" if reply.startswith((",", ".", ";", ":", "!", "?", "'", "’")) else " "
        return Conversation([{"role": "text", "content": messages[0]["content"] + separator + reply}], source)
    last = {"role": "assistant" if messages else "text", "content": reply}
    return Conversation([*messages, last], source)


def split_prompt_reply(example: TokenizedExample) -> tuple[list[int], list[int]]:
    """The token ids before the last reply, and those of the reply including its stop token."""
    start = last_reply_start(example.labels)
    end = max(i for i, label in enumerate(example.labels) if label != IGNORE_INDEX) + 1
    return example.input_ids[:start], example.input_ids[start:end]


def prompt_text(messages: list[Message], tokenizer: "PreTrainedTokenizerBase", role: str = "assistant") -> str:
    """The rendered conversation with the generation prompt for the next turn, by ``role``.

    A plain text stays as it is, to be continued. ``messages`` may be empty if the user speaks first.
    """
    if messages and messages[0]["role"] == "text":
        return messages[0]["content"]
    if role == "assistant":
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return turn_affixes(messages, tokenizer, role)[0].rstrip(" ")


def turn_affixes(messages: list[Message], tokenizer: "PreTrainedTokenizerBase", role: str) -> tuple[str, str]:
    """The template's text before and after the content of the next turn, by ``role``."""
    before, after = render([*messages, {"role": role, "content": PLACEHOLDER}], tokenizer).split(PLACEHOLDER)
    return before, after


def text_before_reply(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The template's text between a user's content and the reply: "\\nAssistant:" for a plain-text template."""
    prompt = prompt_text([{"role": "user", "content": PLACEHOLDER}], tokenizer)
    return prompt.split(PLACEHOLDER)[1].rstrip()


def render_with_spans(
    conversation: Conversation, tokenizer: "PreTrainedTokenizerBase", loss_roles: str
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation, and its character spans that carry loss."""
    messages = conversation.messages
    if messages[0]["role"] == "text":
        text = messages[0]["content"] + str(tokenizer.eos_token)
        return text, [(0, len(text))]
    text = render(messages, tokenizer)
    spans = []
    for i, message in enumerate(messages):
        if loss_roles in ("all", message["role"]) and i not in conversation.masked_turns:
            spans.append(turn_span(text, conversation, i, tokenizer))
    return text, spans


def turn_span(text: str, conversation: Conversation, i: int, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, int]:
    """The span of turn ``i`` in ``text``: from the first character that the model writes to the end of its stop token.

    Raises MannersError for a template that renders a turn differently once others follow.
    """
    messages = conversation.messages
    role = messages[i]["role"]
    before, after = turn_affixes(messages[:i], tokenizer, role)
    if role == "assistant" and i > 0:
        prompt = prompt_text(messages[:i], tokenizer)  # in some templates the space after "Assistant:" is not in it
        before = prompt if before.startswith(prompt) else before
    else:
        before = before.rstrip(" ")  # the space after "User:" belongs to the token of the first word
    rendered = render(messages[: i + 1], tokenizer)
    if not (text.startswith(before) and text.startswith(rendered.rstrip())):
        raise MannersError(
            f"{conversation.source}: the chat template rewrites earlier turns when later ones follow, so the tokens of "
            "a turn cannot be located. Use another template: model.chat_template=chatml or plain."
        )
    return len(before), len(rendered) - len(after) + stop_length(after, tokenizer, role)


def stop_length(after: str, tokenizer: "PreTrainedTokenizerBase", role: str) -> int:
    """The length of what ends a turn in the text that follows it: up to the end of the first special token.

    Turns other than a reply may end without one ("User: ..." ends with its line). Raises MannersError for a reply
    without one.
    """
    stops = [(after.find(t), len(t)) for t in special_tokens(tokenizer) if t in after]
    if not stops and role != "assistant":
        return len(after)
    if not stops:
        raise MannersError(
            "the chat template writes no special token after a reply, so the model would never learn to stop. "
            "Use another template: model.chat_template=chatml or plain."
        )
    start, length = min(stops)
    return start + length


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """The texts of all special tokens, the added ones included."""
    added = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    return added | set(tokenizer.all_special_tokens)


def render(messages: list[Message], tokenizer: "PreTrainedTokenizerBase") -> str:
    """The messages as the chat template renders them, without a generation prompt."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def labels_from_spans(ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """Labels (T,): the token id where a token begins inside a span, else IGNORE_INDEX."""
    return [
        token if any(start <= at < end for start, end in spans) else IGNORE_INDEX
        for token, (at, _) in zip(ids, offsets, strict=True)
    ]


def truncate(ids: list[int], labels: list[int], max_length: int) -> TokenizedExample:
    """An example of at most ``max_length`` tokens: the oldest tokens go first, then the end of the last reply.

    The last trained turn keeps at least half the length, or all of itself. A reply that loses its end loses its stop
    token, so that the model does not learn to stop in the wrong place.
    """
    num_truncated = len(ids) - max_length
    if num_truncated <= 0:
        return TokenizedExample(ids, labels)
    reply_start = last_reply_start(labels)
    context = min(reply_start, max(max_length - (len(ids) - reply_start), max_length // 2))
    kept = slice(reply_start - context, reply_start - context + max_length)
    return TokenizedExample(ids[kept], labels[kept], num_truncated)


def last_reply_start(labels: list[int]) -> int:
    """The index of the first token in the last run of tokens that carry loss."""
    start = max(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
    while start > 0 and labels[start - 1] != IGNORE_INDEX:
        start -= 1
    return start
