"""Chat templates for models that have none, chosen with ``model.chat_template``, and what training needs of any.

They are Jinja in transformers' own dialect: the saved tokenizer carries the template, and plain
``apply_chat_template`` renders it. None is chosen silently: ``load_tokenizer`` refuses a model without a template until
one of these is named.

- ``chatml`` is Qwen's layout without a default system prompt.
- ``plain`` is for base models without chat tokens (GPT-2, Pythia): ordinary text and EOS only, so that a LoRA need not
  train embeddings.
- ``marked`` opens each turn with ``<|role|>``: ordinary text, or a token of its own if ``model.added_tokens`` lists it.

``adapted_for_training`` makes the saved template give every other program the tokens that the model is trained on.
"""

import re
from typing import Any

from jinja2 import TemplateError

from manners.data.rendering import TemplateRefusal, render, render_with_spans, text_between_turns
from manners.data.tokenize import bos_ids
from manners.data.types import Conversation

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

PLAIN = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}{{- 'Assistant: ' + message['content'] + eos_token + '\\n' -}}
{%- elif message['role'] == 'user' -%}{{- 'User: ' + message['content'] + '\\n' -}}
{%- else -%}{{- message['content'] + '\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""

MARKED = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' + message['content'] -}}
{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

TEMPLATES = {"chatml": CHATML, "plain": PLAIN, "marked": MARKED}


def adapted_for_training(tokenizer: Any) -> str:
    """The tokenizer's chat template, or TRL's training template for its family where its own cannot be trained with.

    It writes BOS if the tokenizer puts one before a text, and no space after the generation prompt: the space belongs
    to the token of the reply's first word.
    """
    template = str(tokenizer.get_chat_template())
    if not keeps_turns(tokenizer):
        template = trl_template(tokenizer) or template
    try:
        prompt = render([{"role": "user", "content": "Hi"}], tokenizer, add_generation_prompt=True)
    except TemplateRefusal:  # it needs more turns: the rows will tell
        return template
    if prompt.endswith(" "):
        template = "{% set rendered %}" + template + "{% endset %}{{ rendered.rstrip(' ') }}"
    if bos_ids(tokenizer) and not prompt.startswith(tokenizer.bos_token):
        template = "{{ bos_token }}" + template
    return template


def writes(tokenizer: Any, token: str) -> bool:
    """Whether the chat template writes ``token`` around a turn."""
    roles = ("user", "assistant", "user")
    try:
        return token in "".join(text_between_turns(roles, tokenizer))
    except TemplateRefusal:
        return token in tokenizer.chat_template


def keeps_turns(tokenizer: Any) -> bool:
    """Whether earlier replies, and thoughts in them, are rendered as they were when they were asked for."""
    for reply in ("Hello.", "<think>\nA greeting.\n</think>\n\nHello."):
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": reply}]
        try:
            render_with_spans(Conversation(turns * 2), tokenizer, "assistant")
        except TemplateRefusal:
            return False
    return True


def trl_template(tokenizer: Any) -> str | None:
    """TRL's training template for the tokenizer's, without its tags for masks, which other programs do not know."""
    from trl.chat_template_utils import get_training_chat_template

    try:
        template = get_training_chat_template(tokenizer)
    except (ValueError, TypeError, TemplateError):  # not a template that TRL knows
        return None
    return template and re.sub(
        r"(\{%-?\s*)(end)?generation\b", lambda m: m[1] + ("endif" if m[2] else "if true"), template
    )
