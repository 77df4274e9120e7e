"""Conversations → token ids and labels. The only place that encodes what a chat template renders.

The whole conversation is rendered and tokenized once, so that the model is trained on the very tokens that it sees in
inference: the tokens of a prompt (``prompt_ids``) are those that its row begins with. Which tokens carry loss is
decided by character spans (``rendering.render_with_spans``). The stop token after a trained turn carries loss; nothing
after it does. Labels never depend on the padding token, which in many models is also the stop token.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from manners.data.rendering import (
    HIDDEN_CHARS,
    TemplateRefusal,
    hide_special_tokens,
    last_token_start,
    prompt_text,
    render_with_spans,
    special_tokens,
    swap_hidden,
    trained_turns,
)
from manners.data.types import Conversation, LabeledReply, Message, PreferencePair
from manners.errors import MannersError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # torch's cross_entropy ignores such labels
UNLIMITED = 10**9  # tokens
Offsets = list[tuple[int, int]]  # (T, 2): the characters of each token, from and to


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

    Raises MannersError for a row that the chat template refuses, or does not render as it was given.
    """
    conversations = list(conversations)
    check_tokenizer(tokenizer, conversations)
    texts, spans = [], []
    for conversation in conversations:
        try:
            text, loss_spans = render_with_spans(conversation, tokenizer, loss_roles)
        except TemplateRefusal as error:
            raise MannersError(f"{conversation.source}: {error}" if conversation.source else str(error)) from None
        texts.append(text)
        spans.append(loss_spans)
    encoded = encode(texts, tokenizer, [[start for start, _ in loss_spans] for loss_spans in spans])
    examples = []
    for conversation, (ids, offsets), loss_spans in zip(conversations, encoded, spans, strict=True):
        labels = labels_from_spans(ids, offsets, loss_spans)
        if len(ids) > max_length:
            examples.append(shortened_example(conversation, ids, labels, tokenizer, loss_roles, max_length))
        else:
            examples.append(TokenizedExample(ids, labels))
    return examples


def shortened_example(
    conversation: Conversation,
    ids: list[int],
    labels: list[int],
    tokenizer: "PreTrainedTokenizerBase",
    loss_roles: str,
    max_length: int,
) -> TokenizedExample:
    """The example of a row longer than ``max_length``: its prompt is shortened, then the end of the last reply is cut.

    The last trained turn keeps at least half the length, or all of itself.
    """
    last = max(trained_turns(conversation, loss_roles), default=0)
    reply_start = last_reply_start(labels)
    context = max(max_length - (len(ids) - reply_start), max_length // 2)
    prompt = conversation.messages[:last]
    if prompt and reply_start > context:
        kept = shorten(prompt, context, tokenizer, conversation.messages[last]["role"])
        dropped = len(prompt) - len(kept)
        shortened = replace(
            conversation,
            messages=[*kept, *conversation.messages[last:]],
            masked_turns=tuple(i - dropped for i in conversation.masked_turns if i >= dropped),
            metadata={k: v - dropped if k == "conversation_eos_turn" else v for k, v in conversation.metadata.items()},
        )
        [example] = tokenize([shortened], tokenizer, loss_roles, UNLIMITED)
    else:
        example = TokenizedExample(ids, labels)
    cut = truncate(example.input_ids, example.labels, max_length, len(bos_ids(tokenizer)))
    return replace(cut, num_truncated=len(ids) - len(cut.input_ids))


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
) -> list[dict[str, Any]]:
    """``prompt_ids``, ``chosen_ids`` and ``rejected_ids`` of each pair, in order: the columns of TRL's DPOTrainer.

    A fourth column, ``num_truncated``, counts the tokens that the longer row of the pair lost.

    The tokens are those that ``tokenize`` gives for the conversation that ends with the reply; the reply is the part
    that carries loss, including its stop token. Truncation shortens the prompt, the same for both replies, and then
    drops the end of a reply.
    """
    pairs = list(pairs)
    replies = [with_reply(p.messages, reply, p.source) for p in pairs for reply in (p.chosen, p.rejected)]
    encoded = split_replies(replies, tokenizer)
    rows = []
    for pair, chosen, rejected in zip(pairs, encoded[0::2], encoded[1::2], strict=True):
        num_tokens = max(len(chosen[0]) + len(chosen[1]), len(rejected[0]) + len(rejected[1]))
        context = max(max_length - max(len(chosen[1]), len(rejected[1])), max_length // 2)
        if pair.messages and len(chosen[0]) > context:
            prompt = shorten(pair.messages, context, tokenizer)
            both = [with_reply(prompt, reply, pair.source) for reply in (pair.chosen, pair.rejected)]
            chosen, rejected = split_replies(both, tokenizer)
        row = truncate_pair(*chosen, *rejected, max_length, len(bos_ids(tokenizer)))
        kept = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        rows.append(row | {"num_truncated": num_tokens - kept})
    return rows


def tokenize_labeled_replies(
    replies: Iterable[LabeledReply], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[dict[str, Any]]:
    """``prompt_ids``, ``completion_ids`` and ``label`` of each reply, in order: the columns of TRL's KTOTrainer.

    A fourth column, ``num_truncated``, counts the tokens that the row lost. The tokens are those that ``tokenize``
    gives for the conversation that ends with the reply.
    """
    replies = list(replies)
    conversations = [with_reply(r.messages, r.reply, r.source) for r in replies]
    rows = []
    for reply, example in zip(replies, tokenize(conversations, tokenizer, "assistant", max_length), strict=True):
        prompt, completion = split_prompt_reply(example)
        row = {"prompt_ids": prompt, "completion_ids": completion, "label": reply.label}
        rows.append(row | {"num_truncated": example.num_truncated})
    return rows


def split_replies(
    conversations: list[Conversation], tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[list[int], list[int]]]:
    """The token ids of each conversation before its last reply, and those of the reply."""
    return [split_prompt_reply(e) for e in tokenize(conversations, tokenizer, "assistant", UNLIMITED)]


def truncate_pair(
    chosen_prompt: list[int],
    chosen: list[int],
    rejected_prompt: list[int],
    rejected: list[int],
    max_length: int,
    num_bos: int = 0,
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
        "prompt_ids": keep_end(prompt, kept, num_bos),
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


def prompt_ids(
    messages: list[Message],
    tokenizer: "PreTrainedTokenizerBase",
    role: str = "assistant",
    max_length: int = UNLIMITED,
) -> list[int]:
    """The token ids that ask for the next turn, by ``role``: what a row of training begins with.

    A prompt of more than ``max_length`` tokens is shortened (``shorten``). Raises TemplateRefusal.
    """
    hidden = hide_special_tokens(messages, tokenizer)
    text = prompt_text(hidden, tokenizer, role)
    # Tokens of earlier replies begin where they began when those were asked for.
    starts = [len(prompt_text(hidden[:i], tokenizer, role)) for i, m in enumerate(hidden) if i and m["role"] == role]
    [(ids, _)] = encode([text], tokenizer, [starts])
    if len(ids) > max_length:
        ids = prompt_ids(shorten(messages, max_length, tokenizer, role), tokenizer, role)
    return keep_end(ids, max_length, len(bos_ids(tokenizer)))


def shorten(
    messages: list[Message], max_length: int, tokenizer: "PreTrainedTokenizerBase", role: str = "assistant"
) -> list[Message]:
    """``messages`` as a prompt of at most ``max_length`` tokens, if that is possible.

    The oldest turns go first, as long as what remains begins with the same role; then the beginning of the text that is
    left, down to a quarter of ``max_length``; then the end of the system messages. What the template writes stays.
    """
    if len(prompt_ids(messages, tokenizer, role)) <= max_length:
        return list(messages)
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    kept, turns = list(messages), messages[first:]
    for start in (i for i, m in enumerate(turns) if i and m["role"] == turns[0]["role"]):
        kept = [*messages[:first], *turns[start:]]
        if len(prompt_ids(kept, tokenizer, role)) <= max_length:
            return kept
    system, texts = range(first), range(first, len(kept))
    for i, floor in [*((i, max(max_length, 0) // 4) for i in texts), *((i, 0) for i in (*system, *texts))]:
        while (excess := len(prompt_ids(kept, tokenizer, role)) - max_length) > 0:
            content = kept[i]["content"]
            [(_, offsets)] = encode([hide_special_tokens([kept[i]], tokenizer)[0]["content"]], tokenizer)
            starts = [at for at, _ in offsets if at >= 0]  # a character may be several tokens
            if not (drop := min(excess, len(starts) - floor)) > 0:
                break
            if i < first:
                kept[i] = kept[i] | {"content": content[: starts[-drop]]}
            else:
                cut = next((at for at in starts[drop:] if at > 0), len(content))
                kept[i] = kept[i] | {"content": content[cut:]}
    return kept


def encode(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", starts: Sequence[Sequence[int]] | None = None
) -> list[tuple[list[int], Offsets]]:
    """Token ids and offsets of each text, in which special tokens that are no tokens are hidden.

    BOS comes first if the tokenizer adds one, and once. No token spans one of the ``starts``, the characters at which
    a turn that the model writes begins: a line break that ends the prompt is a token of its own, even where the reply
    begins with another. Raises MannersError where a tokenizer cannot do that.
    """
    bos, encoded = bos_ids(tokenizer), encode_plain(texts, tokenizer)
    for i, cuts in merged_starts(texts, encoded, tokenizer, starts or [[]] * len(texts)).items():
        edges = [0, *cuts, len(texts[i])]
        pieces = [texts[i][a:b] for a, b in pairwise(edges)]
        if tokenizer.convert_ids_to_tokens(encode_plain(["a"], tokenizer)[0][0])[0].startswith("▁"):
            raise MannersError(
                f"this tokenizer merges the beginning of a reply, {pieces[1][:20]!r}, with the end of the prompt, "
                f"{pieces[0][-20:]!r}, so the model could not be asked for it: begin the reply with a letter."
            )
        tokens = [
            (token, (a + edge, b + edge))
            for edge, (ids, offsets) in zip(edges, encode_plain(pieces, tokenizer), strict=False)
            for token, (a, b) in zip(ids, offsets, strict=True)
        ]
        encoded[i] = [token for token, _ in tokens], [offset for _, offset in tokens]
    # Some templates write BOS themselves, perhaps after a line break; where it is EOS too, it may end a reply.
    anywhere = bos != [tokenizer.eos_token_id]
    missing = [[] if ids[: len(bos)] == bos or (anywhere and bos[0] in ids) else bos for ids, _ in encoded]
    return [
        (first + ids, [(-1, -1)] * len(first) + offsets) for first, (ids, offsets) in zip(missing, encoded, strict=True)
    ]


def merged_starts(
    texts: Sequence[str],
    encoded: Sequence[tuple[list[int], Offsets]],
    tokenizer: "PreTrainedTokenizerBase",
    starts: Sequence[Sequence[int]],
) -> dict[int, list[int]]:
    """For each text, by its index, the ``starts`` before which its tokens are not those of the text up to there."""
    merged: dict[int, list[int]] = {}
    known: dict[str, list[int]] = {}  # most prompts end alike, after their last special token
    for i, (text, (ids, offsets)) in enumerate(zip(texts, encoded, strict=True)):
        for start in starts[i]:
            begin = last_token_start(text[:start], tokenizer)
            end_of_prompt = text[begin:start]
            if end_of_prompt not in known:
                known[end_of_prompt] = encode_plain([end_of_prompt], tokenizer)[0][0]
            if ids[bisect_left(offsets, (begin, 0)) : bisect_left(offsets, (start, 0))] != known[end_of_prompt]:
                merged.setdefault(i, []).append(start)
    return merged


def encode_plain(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[list[int], Offsets]]:
    """Token ids and offsets of each text, without BOS. Raises MannersError for a tokenizer that cannot give them."""
    if not tokenizer.is_fast:
        raise MannersError(
            f"{type(tokenizer).__name__} cannot tell which characters a token stands for: a model with a "
            "tokenizer.json is needed."
        )
    encoded: Any = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True) if texts else {}
    pairs = list(zip(encoded.get("input_ids", ()), encoded.get("offset_mapping", ()), strict=True))
    for i, text in enumerate(texts):
        if HIDDEN_CHARS.search(text):
            pairs[i] = encode_hidden(text, tokenizer)
    return pairs


def encode_hidden(text: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], Offsets]:
    """Token ids and offsets of a text with hidden special tokens, which become ordinary tokens.

    Raises MannersError for a tokenizer that knows no others for them.
    """
    literal, special = literal_tokenizer(tokenizer, len(tokenizer), str(tokenizer.chat_template))
    encoded = literal.encode(swap_hidden(text, tokenizer), add_special_tokens=False)
    if found := next((token for token in encoded.ids if token in special.values()), None):
        token = tokenizer.convert_ids_to_tokens(found)
        raise MannersError(f"the text holds {token}, which this tokenizer only knows as a special token: change it.")
    return [special.get(token, token) for token in encoded.ids], encoded.offsets


@lru_cache(maxsize=2)
def literal_tokenizer(tokenizer: "PreTrainedTokenizerBase", _size: int, _template: str) -> tuple[Any, dict[int, int]]:
    """A copy that reads special tokens as text, and what hides them as special tokens, whose ids it maps to theirs."""
    from tokenizers import AddedToken

    literal: Any = deepcopy(tokenizer.backend_tokenizer)  # type: ignore[attr-defined]
    literal.no_truncation()
    literal.no_padding()
    literal.encode_special_tokens = True
    known = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    ids: dict[int, Any] = {}
    literal.add_special_tokens([AddedToken(token, special=True) for token in special_tokens(tokenizer)])
    for token in special_tokens(tokenizer):
        private, same = swap_hidden(token, tokenizer), known.get(token)
        sides = {"lstrip": same.lstrip, "rstrip": same.rstrip, "normalized": same.normalized} if same else {}
        literal.add_tokens([AddedToken(private, special=False, **sides)])
        ids[literal.token_to_id(private)] = tokenizer.convert_tokens_to_ids(token)
    return literal, ids


def bos_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """``[BOS]`` if the tokenizer puts it before a text, as Llama's and Gemma's do; else []."""
    ids: list[int] = tokenizer("")["input_ids"]  # type: ignore[assignment]
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def labels_from_spans(ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """Labels (T,), the loss mask: the token id where a token begins inside a span, else IGNORE_INDEX."""
    return [
        token if any(start <= at < end for start, end in spans) else IGNORE_INDEX
        for token, (at, _) in zip(ids, offsets, strict=True)
    ]


def truncate(ids: list[int], labels: list[int], max_length: int, num_bos: int = 0) -> TokenizedExample:
    """An example of at most ``max_length`` tokens: the oldest after BOS go first, then the end of the last reply.

    The last trained turn keeps at least half the length, or all of itself. A reply that loses its end loses its stop
    token, so that the model does not learn to stop in the wrong place.
    """
    num_truncated = len(ids) - max_length
    if num_truncated <= 0:
        return TokenizedExample(ids, labels)
    reply_start = last_reply_start(labels)
    context = min(reply_start, max(max_length - (len(ids) - reply_start), max_length // 2))
    ids, labels = (keep_end(row[:reply_start], context, num_bos) + row[reply_start:] for row in (ids, labels))
    return TokenizedExample(ids[:max_length], labels[:max_length], num_truncated)


def keep_end(ids: list[int], length: int, num_bos: int = 0) -> list[int]:
    """The last tokens of ``ids``, after the first ``num_bos``: ``length`` in all."""
    if len(ids) <= length:
        return ids
    num_bos = min(num_bos, length)
    return ids[:num_bos] + ids[len(ids) - (length - num_bos) :]


def last_reply_start(labels: list[int]) -> int:
    """The index of the first token in the last run of tokens that carry loss; 0 if none does."""
    start = max((i for i, label in enumerate(labels) if label != IGNORE_INDEX), default=0)
    while start > 0 and labels[start - 1] != IGNORE_INDEX:
        start -= 1
    return start
