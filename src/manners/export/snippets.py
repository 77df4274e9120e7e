"""The card's code: how plain transformers asks the model, or lets it score. It runs as it stands, in the folder."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from manners.data.formats import PLAIN_TEXT_FORMATS
from manners.data.tokenize import prompt_text
from manners.models.reward_model import ScoreNormalizer

ASK = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "."  # this folder, or its name on the hub
tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name)
{inputs}
written = model.generate(**inputs, max_new_tokens={length}, do_sample=False)
print(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""

CHAT = """\
messages = [{{"role": "user", "content": {asked}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""

TEXT = """inputs = tokenizer({opening}, add_special_tokens=False, return_tensors="pt")  # {meaning}"""

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

It reads prompt and reply{where}. What it puts out is
standardised: the last line turns it into the units of its data, as `normalizer.json` says."""


def generation_snippet(cfg: DictConfig, run: Path, tokenizer: Any) -> str:
    """One of the run's own prompts, answered greedily, as in its report."""
    shown = json.loads((run / "after.json").read_text())["shown"] if (run / "after.json").exists() else []
    asked = shown[0]["prompt"] if shown else "Hello."
    if cfg.dataset.loss_roles == "user":
        opening, meaning = prompt_text([], tokenizer, "user"), "it plays the user, and speaks first"
        inputs = TEXT.format(opening=quote_string(opening), meaning=meaning)
    elif cfg.dataset.format in PLAIN_TEXT_FORMATS:
        inputs = TEXT.format(opening=quote_string(asked), meaning="it continues a text")
    else:
        inputs = CHAT.format(asked=quote_string(asked))
    return ASK.format(inputs=inputs, length=cfg.evaluation.max_new_tokens)


def quote_string(text: str) -> str:
    """Text as Python reads it, in double quotes: JSON's are the same."""
    return json.dumps(text, ensure_ascii=False)


def scoring_snippet(cfg: DictConfig, model: Path) -> str:
    """A reply, scored in the units of the data."""
    units = ScoreNormalizer.load(model)
    if cfg.model.decoder:
        where = " in its chat template, up to the token that ends the reply"
        inputs = """\
messages = [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": "Paris."}]
text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")"""
    else:
        where = " as a pair"
        inputs = """inputs = tokenizer("What is the capital of France?", "Paris.", return_tensors="pt")"""
    return SCORE.format(inputs=inputs, where=where, mean=units.mean, scale=units.scale)
