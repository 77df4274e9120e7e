"""Conversations → text, by the chat template: where each turn stands in it, and which token ends a reply.

Text is text: special tokens that are written in a turn are hidden before the template is applied, so that only those
that the template itself writes become special tokens (``tokenize.encode``).
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from manners.data.types import Conversation, Message
from manners.errors import MannersError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER = "\u2af8stand\u2af8in\u2af8"  # occurs in no text or vocabulary
HIDDEN = 0x100000  # special token number k is hidden by private characters HIDDEN + k, as many as it is long
HIDDEN_CHARS = re.compile("[\U00100000-\U0010fffd]")
REASONING = re.compile(r"<[^<>\s]*(think|thought|reason)[^<>\s]*>", re.IGNORECASE)  # <think>, <|begin_of_thought|>
USE_ANOTHER = "Use another template: model.chat_template=plain."


class TemplateRefusal(MannersError):
    """A conversation that the chat template refuses, or whose turns cannot be found in what it renders."""


# --- Special tokens in the text of turns ---


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The texts of all special tokens, the longest first.

    Added tokens count among them that the tokenizer does not call special, but the chat template writes between turns,
    apart from those of a reasoning: rows write these in their replies, and mean the token.
    """
    added = tokenizer.added_tokens_decoder.values()
    written = "".join(chain.from_iterable(_texts_between_turns(tokenizer).values()))
    special = {t.content for t in added if t.special or (t.content in written and not REASONING.search(t.content))}
    return sorted(
        {t for t in special | set(tokenizer.all_special_tokens) if t.strip()}, key=lambda token: (-len(token), token)
    )


def _special_pattern(tokenizer: "PreTrainedTokenizerBase") -> tuple[re.Pattern[str], dict[str, str]]:
    return _pattern_and_hidden(tokenizer, len(tokenizer), str(tokenizer.chat_template))


@lru_cache(maxsize=8)
def _pattern_and_hidden(
    tokenizer: "PreTrainedTokenizerBase", _size: int, _template: str
) -> tuple[re.Pattern[str], dict[str, str]]:
    tokens = special_tokens(tokenizer)
    hidden = {token: chr(HIDDEN + k) * len(token) for k, token in enumerate(tokens)}
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)"), hidden


def hide_text(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """``text`` with private characters in place of its special tokens, at the same length."""
    pattern, hidden = _special_pattern(tokenizer)
    return pattern.sub(lambda match: hidden[match[0]], text)


def swap_hidden(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hidden special tokens become their text, and the others hidden; every character keeps its position."""
    hidden = _special_pattern(tokenizer)[1]
    swapped = hidden | {private: token for token, private in hidden.items()}
    return re.sub("|".join(map(re.escape, swapped)) or r"(?!)", lambda match: swapped[match[0]], text)


def hide_special_tokens(
    messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", except_turn: int | None = None
) -> list[Message]:
    """The messages with the special tokens in their text hidden; those of ``except_turn`` are meant as tokens."""
    return [
        m if i == except_turn else {k: v if k == "role" else hide_text(v, tokenizer) for k, v in m.items()}
        for i, m in enumerate(messages)
    ]


def with_special_tokens(conversations: Sequence[Conversation], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The sources of the conversations in whose text special tokens are written."""
    return [
        c.source
        for c in conversations
        if hide_special_tokens(c.messages, tokenizer, c.metadata.get("conversation_eos_turn")) != c.messages
    ]


# --- Rendering, of messages whose special tokens are hidden ---


def render(messages: list[Message], tokenizer: "PreTrainedTokenizerBase", add_generation_prompt: bool = False) -> str:
    """The messages as the chat template renders them. Raises TemplateRefusal."""
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template is a program: Gemma's refuses system messages, others fail on a type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TemplateRefusal(f"the model's chat template refuses the row: {reason.removesuffix('.')}.") from error
    return str(rendered)


def prompt_text(messages: list[Message], tokenizer: "PreTrainedTokenizerBase", role: str = "assistant") -> str:
    """The rendered conversation with the generation prompt for the next turn, by ``role``.

    A plain text stays as it is, to be continued. ``messages`` may be empty if the user speaks first. A space at the
    end is left to the reply, since it belongs to the token of the first word. Raises TemplateRefusal.
    """
    if messages and messages[0]["role"] == "text":
        return messages[0]["content"]
    if role == "assistant":
        return render(messages, tokenizer, add_generation_prompt=True).rstrip(" ")
    return render([*messages, {"role": role, "content": PLACEHOLDER}], tokenizer).partition(PLACEHOLDER)[0].rstrip(" ")


def text_before_reply(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The template's text between a user's content and the reply: "\\nAssistant:" for a plain-text template."""
    prompt = prompt_text([{"role": "user", "content": PLACEHOLDER}], tokenizer)
    return prompt.partition(PLACEHOLDER)[2].rstrip()


def text_between_turns(roles: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The template's text before, between and after the contents of turns by ``roles``.

    Raises TemplateRefusal for a template that leaves out, repeats or moves the content of a turn.
    """
    return _text_between_turns(tuple(roles), tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=512)
def _text_between_turns(roles: tuple[str, ...], tokenizer: "PreTrainedTokenizerBase", _template: str) -> list[str]:
    contents = [f"{PLACEHOLDER}{i}{PLACEHOLDER}" for i in range(len(roles))]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    parts = re.split(f"({PLACEHOLDER}[0-9]+{PLACEHOLDER})", render(messages, tokenizer))
    found = parts[1::2]
    if found != contents:
        number = next((i for i, c in enumerate(contents) if found[i : i + 1] != [c]), len(contents) - 1)
        raise TemplateRefusal(
            f"the chat template leaves out, repeats or moves what the {roles[number]} says in turn {number + 1}, so "
            f"the model would read another conversation. {USE_ANOTHER}"
        )
    return parts[::2]


# --- The turns that carry loss ---


def trained_turns(conversation: Conversation, loss_roles: str) -> list[int]:
    """The indices of the turns that carry loss."""
    return [
        i
        for i, message in enumerate(conversation.messages)
        if loss_roles in ("all", message["role"]) and i not in conversation.masked_turns
    ]


def render_with_spans(
    conversation: Conversation, tokenizer: "PreTrainedTokenizerBase", loss_roles: str
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation, special tokens in its turns hidden, and its character spans that carry loss.

    Raises TemplateRefusal for a conversation that the template refuses, or does not render as it was given.
    """
    except_turn = conversation.metadata.get("conversation_eos_turn")
    messages = hide_special_tokens(conversation.messages, tokenizer, except_turn)
    if messages[0]["role"] == "text":
        if tokenizer.eos_token is None:
            raise TemplateRefusal("the model's tokenizer has no EOS to end a plain text: train on conversations.")
        text = messages[0]["content"] + str(tokenizer.eos_token)
        return text, [(0, len(text))]
    text = render(messages, tokenizer)
    spans = [turn_span(text, messages, i, tokenizer) for i in trained_turns(conversation, loss_roles)]
    text_between_turns([m["role"] for m in messages], tokenizer)  # raises if a turn without loss is left out
    check_words(text, messages)
    return text, spans


def turn_span(text: str, messages: list[Message], i: int, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, int]:
    """The span of turn ``i`` in ``text``: from the first character that the model writes to the end of its stop token.

    Raises TemplateRefusal for a template that renders a turn differently once others follow, or without its words.
    """
    roles, role, content = [m["role"] for m in messages], messages[i]["role"], messages[i]["content"]
    rendered, last = render(messages[: i + 1], tokenizer), text_between_turns(roles[: i + 1], tokenizer)[-1]
    content_end = len(rendered) - len(last)
    # Some templates end the last reply with another token than those before it.
    after = text_between_turns(roles, tokenizer)[i + 1] if role == "assistant" else last
    end = content_end + stop_length(after, tokenizer, role)
    if not rendered.endswith(last) or text[:end] != rendered[:content_end] + after[: end - content_end]:
        raise TemplateRefusal(
            "the chat template rewrites earlier turns when later ones follow, so the tokens of a turn cannot be "
            f"located. {USE_ANOTHER}"
        )
    if role == "assistant" and i > 0:
        prompt = prompt_text(messages[:i], tokenizer)
        if not text.startswith(prompt):
            raise TemplateRefusal(
                f"the chat template asks for turn {i + 1} by a prompt that ends in {prompt[-20:]!r}, and renders the "
                f"row without it, so training and inference would differ. {USE_ANOTHER}"
            )
        start = len(prompt)
    else:
        endings = (len(c) for c in (content, content.strip()) if rendered[:content_end].endswith(c))
        start = len(rendered[: content_end - next(endings, 0)].rstrip(" "))  # the space belongs to the first word
    if not without_spaces(rendered[:content_end]).endswith(without_spaces(content)):
        raise TemplateRefusal(f"the chat template changes the words of turn {i + 1} ({role}). {USE_ANOTHER}")
    return start, end


def check_words(text: str, messages: list[Message]) -> None:
    """Raise TemplateRefusal unless ``text`` has the words of all messages, in order; white space around them may go."""
    at = 0
    for number, message in enumerate(messages, 1):
        words = message["content"].strip()
        found = text.find(words, at)
        # Templates set a reasoning on lines of its own.
        if found < 0 and not (REASONING.search(words) and without_spaces(words) in without_spaces(text[at:])):
            raise TemplateRefusal(
                f"the chat template changes the words of turn {number} ({message['role']}). {USE_ANOTHER}"
            )
        at = found + len(words) if found >= 0 else at


def without_spaces(text: str) -> str:
    """The text without white space, which templates trim and insert."""
    return "".join(text.split())


def stop_length(after: str, tokenizer: "PreTrainedTokenizerBase", role: str) -> int:
    """The length of what ends a turn in the text that follows it: up to the end of the first special token.

    Turns other than a reply may end without one ("User: ..." ends with its line). Raises TemplateRefusal for a reply
    without one.
    """
    start, token = first_token(after, tokenizer)
    if token:
        return start + len(token)
    if role != "assistant":
        return len(after)
    raise TemplateRefusal(
        "the chat template writes no special token after a reply, so the model would never learn to stop. "
        f"{USE_ANOTHER}"
    )


def last_token_start(text: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Where the last special token begins in ``text``: what stands before it does not change the tokens after it."""
    matches = [match.start() for match in _special_pattern(tokenizer)[0].finditer(text)]
    return matches[-1] if matches else 0


def first_token(text: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, str]:
    """Where the first special token stands in ``text``, and its text, or (-1, "")."""
    found = _special_pattern(tokenizer)[0].search(text)
    return (found.start(), found[0]) if found else (-1, "")


def reply_stop_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """The tokens that the chat template writes after a reply, which training teaches as its end."""
    after = (texts[roles.index("assistant") + 1] for roles, texts in _texts_between_turns(tokenizer).items())
    return {first_token(text, tokenizer)[1] for text in after} - {""}


def _texts_between_turns(tokenizer: "PreTrainedTokenizerBase") -> dict[tuple[str, ...], list[str]]:
    texts: dict[tuple[str, ...], list[str]] = {}
    for roles in ("user", "assistant"), ("user", "assistant", "user"), ("system", "user", "assistant"):
        with suppress(TemplateRefusal):  # Gemma's refuses a system message
            texts[roles] = text_between_turns(roles, tokenizer)
    return texts
