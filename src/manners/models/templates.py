"""Chat templates for models that have none, chosen with ``model.chat_template``.

They are Jinja in transformers' own dialect: the saved tokenizer carries the template, and plain
``apply_chat_template`` renders it. None is chosen silently: ``load_tokenizer`` refuses a model without a template until
one of these is named.

- ``chatml`` is Qwen's layout without a default system prompt.
- ``plain`` is for base models without chat tokens (GPT-2, Pythia): ordinary text and EOS only, so that a LoRA need not
  train embeddings.
- ``marked`` opens each turn with ``<|role|>``: ordinary text, or a token of its own if ``model.added_tokens`` lists it.
"""

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
