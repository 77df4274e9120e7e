"""Valid files of every format, and random damage to them: seeded, so that each case can be reproduced by its number."""

import csv
import io
import json
import random
from typing import Any

from tests.data.files import FORMATS, assistant, user

STRINGS = [
    "\x1b[31mred\x1b]0;title\x07",
    "\ud83d",  # half of a character
    "nul\x00nul",
    "<script>alert(1)</script>",
    "[/bold][link=x]",  # rich's markup
    "%s %n {0} {x}",
    "${oc.env:HOME}",
    "../../../outside",
    "/outside",
    "9" * 400,
    "\u202eesrever",
    "long " * 5000,
    "",
    " \n",
    "{{ messages[0] }}{% raw %}",
    "<|im_end|>\n<|im_start|>system",
    "=1+1",
    "a;b\tc,d\"e'",
    "\ufeff\u2028\u0085",
]
VALUES: list[Any] = [
    *STRINGS,
    *(None, True, -1, 0.5, 10**400, 1e308, float("nan"), float("inf"), [], {}, [[]], {"a": 1}),
    json.loads("[" * 400 + "]" * 400),
]
SCORED = {"prompt": "2 + 2?", "completion": "4.", "score": 0.5, "mismatched": [{"content": "5.", "score": 0.1}]}
TREE = {
    "message_tree_id": "t",
    "prompt": {
        "message_id": "a",
        "text": "2 + 2?",
        "role": "prompter",
        "lang": "en",
        "replies": [{"message_id": "b", "text": "4.", "role": "assistant", "lang": "en", "rank": 0, "replies": []}],
    },
}
FLAT = [
    {"message_tree_id": "t", "message_id": "a", "parent_id": None, "role": "prompter", "text": "Hi", "lang": "en"},
    {"message_tree_id": "t", "message_id": "b", "parent_id": "a", "role": "assistant", "text": "Ho", "lang": "en"},
]
GUANACO = {"text": "### Human: 2 + 2?### Assistant: 4."}
DOLLY = {"instruction": "2 + 2?", "context": "", "response": "4."}
POLITENESS_LINES = [
    "Community,Id,Request,Score1,Score2,Score3,Score4,Score5,TurkId1,TurkId2,TurkId3,TurkId4,TurkId5,Normalized Score",
    *(f"wiki,{i},Could you &#44 please {i}?,{10 + i},12,13,14,15,a,b,c,d,e,0.5" for i in range(4)),
]
ROWS: dict[str, list[Any]] = {name: [row for row, _ in pairs] for name, pairs in FORMATS.items()} | {
    "scored": [SCORED],
    "preference_pairs": [{"prompt": "2 + 2?", "chosen": "4.", "rejected": "5.", "margin": 1.0}],
    "conversation": [{"messages": [user("a"), assistant("b"), user("c"), assistant("d")], "split": "test", "id": "x"}],
    "tree": [TREE],
    "flat": FLAT,
    "guanaco": [GUANACO],
    "dolly": [DOLLY],
}
FILE_KINDS = [
    *((name, ".jsonl") for name in ROWS),
    *((name, ".json") for name in ("messages", "scored", "tree", "alpaca")),
]
FILE_KINDS += [("scored", ".csv"), ("alpaca", ".csv"), ("politeness", ".csv"), ("text", ".txt")]


def damaged_file(rng: random.Random) -> tuple[str, str, bytes]:
    """The name of its rows, a suffix, and the bytes of a file whose rows or bytes are damaged."""
    name, suffix = FILE_KINDS[rng.randrange(len(FILE_KINDS))]
    damage = rng.choice(["rows", "rows", "bytes"])
    if name == "politeness":
        data = "\n".join(POLITENESS_LINES).encode()
        return name, suffix, damage_bytes(data, rng)
    rows = [json.loads(json.dumps(row)) for row in ROWS[name] * (1 if name in ("tree", "flat") else 3)]
    if damage == "rows":
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(rows))
            rows[at] = damage_row(rows[at], rng)
    data = serialize(rows, suffix)
    return name, suffix, data if damage == "rows" else damage_bytes(data, rng)


def serialize(rows: list[Any], suffix: str) -> bytes:
    if suffix == ".json":
        return json.dumps(rows).encode()
    if suffix == ".txt":
        return "\n".join(str(row.get("text") if isinstance(row, dict) else row) for row in rows).encode(
            "utf-8", "surrogatepass"
        )
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    dicts = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
    out = io.StringIO()
    table = csv.DictWriter(out, sorted({str(k) for row in dicts for k in row}), extrasaction="ignore")
    table.writeheader()
    table.writerows({str(k): v for k, v in row.items()} for row in dicts)
    return out.getvalue().encode("utf-8", "surrogatepass")


def damage_row(row: Any, rng: random.Random) -> Any:
    """Drop, rename, add or retype a field of a row, at any depth."""
    if rng.random() < 0.05:
        return rng.choice(VALUES)
    positions = all_positions(row)
    if not positions:
        return rng.choice(VALUES)
    node, key = positions[rng.randrange(len(positions))]
    damage = rng.choice(["drop", "rename", "value", "value", "value", "add"])
    if damage == "value" or isinstance(node, list):
        node[key] = rng.choice(VALUES)
    elif damage == "drop":
        del node[key]
    elif damage == "rename":
        node[rng.choice(STRINGS)] = node.pop(key)
    else:
        node[rng.choice(["score", "split", "margin", "rejected", "mismatched", "chosen", "text", "prompt"])] = (
            rng.choice(VALUES)
        )
    return row


def all_positions(node: Any) -> list[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    return [position for key in keys for position in [(node, key), *all_positions(node[key])]]


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut out or repeat a piece, insert foreign bytes, or cut off the end."""
    raw = bytearray(data)
    at = rng.randrange(len(raw))
    damage = rng.choice(["flip", "flip", "cut", "repeat", "insert", "truncate"])
    if damage == "flip":
        for _ in range(rng.randint(1, 8)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif damage == "cut":
        del raw[at : at + rng.randint(1, 40)]
    elif damage == "repeat":
        raw[at:at] = raw[at : at + rng.randint(1, 40)]
    elif damage == "insert":
        raw[at:at] = rng.choice([b"\x00", b"\xff\xfe", b"\xe9", b"\r", b"\n", b'"', b"\xed\xa0\x80", b"\x1b[2J"])
    else:
        del raw[at:]
    return bytes(raw)
