"""Ollama's Modelfile for an exported model: its chat template in Go's syntax, its stop tokens and its decoding.

Ollama runs no Jinja template. Of the one in a GGUF file it only asks which of some twenty templates of its own is the
most similar, and takes none if they differ by a hundred characters. So the template is written out here, where
it can be: where every turn is rendered as a text before, the content and a text after, which depend on the role alone.
That is read off what the tokenizer renders, and held against its rendering of whole conversations. It holds for ChatML,
``plain``, ``marked`` and most others; not for one that trims contents or drops earlier thoughts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers import AutoTokenizer, GenerationConfig

from manners.data.formats import PLAIN_TEXT_FORMATS
from manners.data.rendering import TemplateRefusal, prompt_text, text_between_turns
from manners.data.tokenize import bos_ids
from manners.data.types import Message

ROLES = ("system", "user", "assistant")
CONTENTS = {
    "system": " One\n line. ",
    "user": "\n Two  words, <b> \n",
    "assistant": "<think>\nWhy?\n</think>\n\nThis.\n ",
}
PROBES = [
    [{"role": role, "content": CONTENTS[role]} for role in roles]
    for roles in (
        ("user",),
        ("system", "user"),
        ("user", "assistant", "user"),
        ("system", "user", "assistant", "user", "assistant", "user"),
    )
]
NO_TEMPLATE = (
    "its chat template cannot be written in Ollama's language, so the Modelfile has none: Ollama takes one of its own "
    "that resembles it, or none. See which: ollama show --template NAME"
)


@dataclass(frozen=True)
class TurnTexts:
    """What a chat template writes around the turns, where that depends on their roles alone."""

    start: str  # BOS, where llama.cpp does not put it there itself
    before: dict[str, str]  # by role
    after: dict[str, str]
    generation_prompt: str
    default_system: str  # system message of a conversation that has none; "" for none

    def render(self, messages: list[Message]) -> str:
        """The conversation with the generation prompt, after BOS."""
        if self.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        turns = (self.before[m["role"]] + m["content"] + self.after[m["role"]] for m in messages)
        return "".join(turns) + self.generation_prompt


def turn_texts(tokenizer: Any) -> TurnTexts | None:
    """The texts that the tokenizer's template writes around the turns; None where it does more than that."""
    if "strftime_now" in str(tokenizer.chat_template):  # the date is not a constant
        return None
    bos = str(tokenizer.bos_token or "")
    # Where the tokenizer puts BOS before a text, llama.cpp does too, and the template's is left out. SmolLM2's BOS is
    # <|im_start|>: that a prompt begins with it does not yet make it a BOS.
    starts = [(bos, "")] if bos_ids(tokenizer) else [("", ""), (bos, bos)]
    return next((texts for rendered, start in starts if (texts := texts_after(rendered, start, tokenizer))), None)


def texts_after(bos: str, start: str, tokenizer: Any) -> TurnTexts | None:
    """What the template writes after ``bos``, for which ``start`` is written; None where that is no ``TurnTexts``."""
    try:
        first, system_to_user, after_user = text_between_turns(ROLES[:2], tokenizer)
        *_, user_to_reply, after_reply = text_between_turns(ROLES, tokenizer)
        *_, reply_to_user, _ = text_between_turns((*ROLES, "user"), tokenizer)
        prompts = [prompt_text(messages, tokenizer) for messages in PROBES]
    except TemplateRefusal:
        return None
    if not all(text.startswith(bos) for text in (first, *prompts)):
        return None
    prompts, user = [prompt.removeprefix(bos) for prompt in prompts], reply_to_user.removeprefix(after_reply)
    before = {"system": first.removeprefix(bos), "user": user, "assistant": user_to_reply.removeprefix(after_user)}
    after = {"system": system_to_user.removesuffix(user), "user": after_user, "assistant": after_reply}
    opening, found, ending = prompts[0].partition(user + CONTENTS["user"] + after_user)
    default_system = opening.removeprefix(before["system"]).removesuffix(after["system"])
    texts = TurnTexts(start, before, after, ending, default_system)
    return texts if found and [texts.render(messages) for messages in PROBES] == prompts else None


def go_template(texts: TurnTexts) -> str:
    """The template in Go's syntax; ``.Messages`` are the turns, a system message among them.

    A reply begins with a space where the generation prompt ends before one. That space is not written twice.
    """
    cases = []
    for role in ROLES:
        before = texts.before[role]
        if before == texts.generation_prompt + " ":
            before = texts.generation_prompt + '{{ if ne (printf "%.1s" .Content) " " }} {{ end }}'
        cases.append(f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{texts.after[role]}')
    turn = "{{ " + "{{ else ".join(cases) + "{{ end }}"
    return f"{texts.start}{{{{ range .Messages }}}}{turn}{{{{ end }}}}{texts.generation_prompt}"


def writable(texts: TurnTexts) -> bool:
    """Whether a Modelfile can hold the texts: no braces, which are Go's, and no quotes that would end them."""
    literal = (texts.start, *texts.before.values(), *texts.after.values(), texts.generation_prompt)
    return not set("{}") & set("".join(literal)) and quotable("".join(literal)) and quotable(texts.default_system)


def quotable(text: str) -> bool:
    """Whether Ollama reads ``text`` between triple quotes as it is: it drops what Go does not call printable."""
    return '"""' not in text and all(c.isprintable() or c in "\n\t\r" for c in text)


def write_modelfile(folder: Path, gguf: Path, cfg: DictConfig) -> str:
    """Write ``folder``/Modelfile for the file ``gguf`` in it; return what a reader must know of it, "" for nothing.

    None is written where the model was trained to speak as the user: in Ollama it could only be the assistant.
    """
    if cfg.dataset.loss_roles not in ("assistant", "all"):
        return (
            f"no Modelfile is written: the model speaks as the {cfg.dataset.loss_roles}, for which Ollama has no place"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines, note = [f"FROM ./{gguf.name}"], ""
    if cfg.dataset.format in PLAIN_TEXT_FORMATS:  # the model continues a text
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    elif (texts := turn_texts(tokenizer)) and writable(texts):
        lines.append(f'TEMPLATE """{go_template(texts)}"""')
        if texts.default_system:
            lines.append(f'SYSTEM """{texts.default_system}"""')
    else:
        note = NO_TEMPLATE
    lines += parameters(folder, tokenizer, cfg.evaluation.max_new_tokens)
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return note


def parameters(folder: Path, tokenizer: Any, max_new_tokens: int) -> list[str]:
    """The decoding of the run's report, each part of it: Ollama's defaults penalize repetition and cut the tail.

    Only tokens that were added to the vocabulary become stop strings: the text of another is part of other tokens.
    """
    decoding = GenerationConfig.from_pretrained(folder)
    added = tokenizer.added_tokens_decoder
    stops = [added[i].content for i in decoding.eos_token_id if i in added]
    values: dict[str, Any] = {"temperature": decoding.temperature if decoding.do_sample else 0}
    if decoding.do_sample:
        values |= {"top_k": decoding.top_k, "top_p": decoding.top_p}
    values |= {"repeat_penalty": decoding.repetition_penalty, "num_predict": max_new_tokens}
    return [
        *(f'PARAMETER stop "{stop}"' for stop in stops if quotable(stop) and '"' not in stop),
        *(f"PARAMETER {key} {value}" for key, value in values.items()),
    ]
