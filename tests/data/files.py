"""Small data files of every format, for the tests that load data."""

import json

from omegaconf import OmegaConf

from manners.config.schema import DatasetConfig
from manners.data import loading


def config(path, **options):
    return OmegaConf.structured(DatasetConfig(path=str(path), **options))


def read(path, **options):
    """The splits of a file: all rows in train, unless the rows or ``options`` say otherwise."""
    return loading.load_splits(config(path, **{"validation_share": 0.0, "test_share": 0.0} | options))


def write(folder, *rows, name="data.jsonl"):
    """Write a file of ``rows``, each a JSON value or a literal line."""
    path = folder / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
EXCHANGE = [user("2 + 2?"), assistant("4.")]

# format → pairs of a row and its messages; `auto` detects the format from the first row
FORMATS = {
    "messages": [
        ({"messages": EXCHANGE}, EXCHANGE),
        ({"messages": [SYSTEM, *EXCHANGE, user("And 3 + 3?"), assistant("6.")]},
         [SYSTEM, *EXCHANGE, user("And 3 + 3?"), assistant("6.")]),
    ],
    "prompt_completion": [
        ({"prompt": "2 + 2?", "completion": "4."}, EXCHANGE),
        ({"prompt": [SYSTEM, user("2 + 2?")], "completion": [assistant("4.")]}, [SYSTEM, *EXCHANGE]),
        ({"prompt": "2 + 2?", "reply": "4."}, EXCHANGE),
        ({"prompt": "2 + 2?", "response": "4."}, EXCHANGE),
    ],
    "marked": [
        ({"text": "<|user|>2 + 2?<|assistant|>4."}, EXCHANGE),
        ({"text": "<|system|>Be brief.\n<|user|>2 + 2?\n<|assistant|> 4.\n"}, [SYSTEM, *EXCHANGE]),
    ],
    "sharegpt": [
        ({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4."}]}, EXCHANGE),
        ({"conversations": [{"from": "system", "value": "Be brief."}, {"from": "user", "value": "2 + 2?"},
                            {"from": "chatgpt", "value": "4."}]}, [SYSTEM, *EXCHANGE]),
    ],
    "alpaca": [
        ({"instruction": "2 + 2?", "output": "4."}, EXCHANGE),
        ({"instruction": "2 + 2?", "input": "", "output": "4."}, EXCHANGE),
        ({"instruction": "2 + 2?", "input": None, "output": "4."}, EXCHANGE),
        ({"instruction": "Add.", "input": "2 and 2", "output": "4."}, [user("Add.\n\n2 and 2"), assistant("4.")]),
    ],
    "preference": [({"prompt": "2 + 2?", "chosen": "4.", "rejected": "5."}, EXCHANGE)],
    "text": [({"text": "Once upon a time."}, [{"role": "text", "content": "Once upon a time."}])],
}  # fmt: skip
