"""Chat templates for models that bring none, and the markers that training needs.

A template here is Jinja in transformers' own dialect, so that the saved tokenizer carries it and plain
``apply_chat_template`` renders it. ``CHATML`` is Qwen's layout without a default system prompt. ``PLAIN`` is for base
models without any chat tokens (GPT-2, Pythia): only existing text and EOS, so that LoRA need not train embeddings.
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
