"""Data files for the tests of the readers."""

import json

from omegaconf import OmegaConf

from manners.config.schema import DatasetConfig
from manners.data import loading


def config(path, **options):
    return OmegaConf.structured(DatasetConfig(path=str(path), **options))


def read(path, **options):
    """All rows in train, unless the rows or ``options`` say otherwise."""
    return loading.load_splits(config(path, **{"validation_share": 0.0, "test_share": 0.0} | options))


def write(folder, *rows, name="data.jsonl"):
    """A file of ``rows``: each a JSON value, or a line as it stands."""
    path = folder / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = [user("2 + 2?"), assistant("4.")]

# format → pairs of a row and the conversation in it; the first row is one that `auto` can tell
FORMATS = {
    "messages": [
        ({"messages": ASKED}, ASKED),
        ({"messages": [SYSTEM, *ASKED, user("And 3 + 3?"), assistant("6.")]},
         [SYSTEM, *ASKED, user("And 3 + 3?"), assistant("6.")]),
    ],
    "prompt_completion": [
        ({"prompt": "2 + 2?", "completion": "4."}, ASKED),
        ({"prompt": [SYSTEM, user("2 + 2?")], "completion": [assistant("4.")]}, [SYSTEM, *ASKED]),
        ({"prompt": "2 + 2?", "reply": "4."}, ASKED),
        ({"prompt": "2 + 2?", "response": "4."}, ASKED),
    ],
    "marked": [
        ({"text": "<|user|>2 + 2?<|assistant|>4."}, ASKED),
        ({"text": "<|system|>Be brief.\n<|user|>2 + 2?\n<|assistant|> 4.\n"}, [SYSTEM, *ASKED]),
    ],
    "sharegpt": [
        ({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4."}]}, ASKED),
        ({"conversations": [{"from": "system", "value": "Be brief."}, {"from": "user", "value": "2 + 2?"},
                            {"from": "chatgpt", "value": "4."}]}, [SYSTEM, *ASKED]),
    ],
    "alpaca": [
        ({"instruction": "2 + 2?", "output": "4."}, ASKED),
        ({"instruction": "2 + 2?", "input": "", "output": "4."}, ASKED),
        ({"instruction": "2 + 2?", "input": None, "output": "4."}, ASKED),
        ({"instruction": "Add.", "input": "2 and 2", "output": "4."}, [user("Add.\n\n2 and 2"), assistant("4.")]),
    ],
    "preference": [({"prompt": "2 + 2?", "chosen": "4.", "rejected": "5."}, ASKED)],
    "text": [({"text": "Once upon a time."}, [{"role": "text", "content": "Once upon a time."}])],
}  # fmt: skip
