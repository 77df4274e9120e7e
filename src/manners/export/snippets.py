"""Code examples for the card: generate or score with plain transformers, runnable in the exported folder."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from manners.data.formats import PLAIN_TEXT_FORMATS
from manners.data.rendering import first_token, hide_text, prompt_text, text_between_turns
from manners.data.tokenize import bos_ids
from manners.models.reward_model import ScoreNormalizer

GENERATE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "."  # this folder, or its name on the hub
tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name)
{inputs}
output = model.generate(**inputs, max_new_tokens={length}, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""

CHAT = """\
messages = [{{"role": "user", "content": {prompt}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""

CONTINUE = """inputs = tokenizer({prompt}, add_special_tokens=False, return_tensors="pt")  # {comment}"""

SCORE = """\
```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

name = "."  # this folder, or its name on the hub
tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForSequenceClassification.from_pretrained(name)
{inputs}
with torch.no_grad():
    print({mean!r} + {scale!r} * model(**inputs).logits.item())
```

The input is prompt and reply{input_format}. The output is standardized: the
last line converts it to the dataset's scores, with mean and scale from `normalizer.json`."""


def generation_snippet(cfg: DictConfig, run: Path, tokenizer: Any) -> str:
    """Code that generates a greedy reply to the first prompt of the run's report."""
    shown = json.loads((run / "after.json").read_text())["shown_generations"] if (run / "after.json").exists() else []
    prompts = [generation["prompt"] for generation in shown]
    # Plain transformers reads a special token in a text as one, as we do not.
    prompt = next((text for text in prompts if text == hide_text(text, tokenizer)), "Hello.")
    if cfg.dataset.loss_roles == "user":
        user_prompt = prompt_text([], tokenizer, "user")
        inputs = CONTINUE.format(prompt=quote_string(user_prompt), comment="the model writes the user's first turn")
    elif cfg.dataset.format in PLAIN_TEXT_FORMATS:
        prompt = tokenizer.decode(bos_ids(tokenizer)) + prompt
        inputs = CONTINUE.format(prompt=quote_string(prompt), comment="the model continues a text")
    else:
        inputs = CHAT.format(prompt=quote_string(prompt))
    return GENERATE.format(inputs=inputs, length=cfg.evaluation.max_new_tokens)


def quote_string(text: str) -> str:
    """A Python string literal in double quotes; JSON's are the same."""
    return json.dumps(text, ensure_ascii=False)


def scoring_snippet(cfg: DictConfig, model: Path, tokenizer: Any) -> str:
    """Code that scores a reply on the scale of the dataset."""
    normalizer = ScoreNormalizer.load(model)
    if cfg.model.decoder:
        input_format = " in its chat template, up to the token that ends the reply"
        after = text_between_turns(("user", "assistant"), tokenizer)[-1]
        start, stop = first_token(after, tokenizer)
        rest = quote_string(after[start + len(stop) :])
        inputs = f"""\
question, answer = "What is the capital of France?", "Paris."
messages = [{{"role": "user", "content": question}}, {{"role": "assistant", "content": answer}}]
text = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix({rest})
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")"""
    else:
        input_format = " as a pair"
        inputs = """inputs = tokenizer("What is the capital of France?", "Paris.", return_tensors="pt")"""
    return SCORE.format(inputs=inputs, input_format=input_format, mean=normalizer.mean, scale=normalizer.scale)
