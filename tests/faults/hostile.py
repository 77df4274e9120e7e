"""Good inputs of every kind, and what may befall them: seeded, so that each case can be had again by its number."""

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
POLITE = [
    "Community,Id,Request,Score1,Score2,Score3,Score4,Score5,TurkId1,TurkId2,TurkId3,TurkId4,TurkId5,Normalized Score",
    *(f"wiki,{i},Could you &#44 please {i}?,{10 + i},12,13,14,15,a,b,c,d,e,0.5" for i in range(4)),
]
ROWS: dict[str, list[Any]] = {name: [row for row, _ in pairs] for name, pairs in FORMATS.items()} | {
    "scored": [SCORED],
    "pairs": [{"prompt": "2 + 2?", "chosen": "4.", "rejected": "5.", "margin": 1.0}],
    "talk": [{"messages": [user("a"), assistant("b"), user("c"), assistant("d")], "split": "test", "id": "x"}],
    "tree": [TREE],
    "flat": FLAT,
    "guanaco": [GUANACO],
    "dolly": [DOLLY],
}
KINDS = [*((name, ".jsonl") for name in ROWS), *((name, ".json") for name in ("messages", "scored", "tree", "alpaca"))]
KINDS += [("scored", ".csv"), ("alpaca", ".csv"), ("polite", ".csv"), ("text", ".txt")]


def file(pick: random.Random) -> tuple[str, str, bytes]:
    """A format, a suffix, and the bytes of a file of some rows to which something has happened."""
    name, suffix = KINDS[pick.randrange(len(KINDS))]
    damage = pick.choice(["rows", "rows", "bytes"])
    if name == "polite":
        data = "\n".join(POLITE).encode()
        return name, suffix, of_bytes(data, pick)
    rows = [json.loads(json.dumps(row)) for row in ROWS[name] * (1 if name in ("tree", "flat") else 3)]
    if damage == "rows":
        for _ in range(pick.randint(1, 2)):
            at = pick.randrange(len(rows))
            rows[at] = of_row(rows[at], pick)
    data = written(rows, suffix)
    return name, suffix, data if damage == "rows" else of_bytes(data, pick)


def written(rows: list[Any], suffix: str) -> bytes:
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


def of_row(row: Any, pick: random.Random) -> Any:
    """A field dropped, renamed, added, or of another type, at any depth."""
    if pick.random() < 0.05:
        return pick.choice(VALUES)
    places = [(node, key) for node, key in walk(row)]
    if not places:
        return pick.choice(VALUES)
    node, key = places[pick.randrange(len(places))]
    what = pick.choice(["drop", "rename", "value", "value", "value", "add"])
    if what == "value" or isinstance(node, list):
        node[key] = pick.choice(VALUES)
    elif what == "drop":
        del node[key]
    elif what == "rename":
        node[pick.choice(STRINGS)] = node.pop(key)
    else:
        node[pick.choice(["score", "split", "margin", "rejected", "mismatched", "chosen", "text", "prompt"])] = (
            pick.choice(VALUES)
        )
    return row


def walk(node: Any) -> list[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    return [place for key in keys for place in [(node, key), *walk(node[key])]]


def of_bytes(data: bytes, pick: random.Random) -> bytes:
    """Bits flipped, a piece cut out or repeated, strange bytes put in, or the end torn off."""
    raw = bytearray(data)
    at = pick.randrange(len(raw))
    what = pick.choice(["flip", "flip", "cut", "repeat", "insert", "tear"])
    if what == "flip":
        for _ in range(pick.randint(1, 8)):
            raw[pick.randrange(len(raw))] ^= 1 << pick.randrange(8)
    elif what == "cut":
        del raw[at : at + pick.randint(1, 40)]
    elif what == "repeat":
        raw[at:at] = raw[at : at + pick.randint(1, 40)]
    elif what == "insert":
        raw[at:at] = pick.choice([b"\x00", b"\xff\xfe", b"\xe9", b"\r", b"\n", b'"', b"\xed\xa0\x80", b"\x1b[2J"])
    else:
        del raw[at:]
    return bytes(raw)
