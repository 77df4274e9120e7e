"""Invented rows of datasets on the hub, with the columns and splits of the real ones."""

import hashlib
from typing import Any

from datasets import Features, List, Value

STRING, INT, FLOAT, BOOL = (Value(kind) for kind in ("string", "int32", "float64", "bool"))
FOODS = ("bread", "soup", "tea", "jam", "rice", "cheese", "honey", "butter", "salad", "coffee", "porridge", "cake")
RISKS = ("toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit")
Row = dict[str, Any]


def conversation(number: int) -> list[str]:
    """Four turns, starting with the user's; different for each number."""
    food = FOODS[number % len(FOODS)]
    return [
        f"How long does {food} keep on shelf {number}?",
        f"Most {food} keeps for {number + 2} days there.",
        f"And if the {food} stands in the cold?",
        f"Then it keeps for {2 * number + 4} days.",
    ]


def conversations(first: int, last: int) -> list[list[str]]:
    return [conversation(number) for number in range(first, last)]


# --- OpenAssistant/oasst1: one message per row ---


def tree(name: str, turns: list[str], lang: str = "en") -> list[Row]:
    """A message tree with two replies to the prompt, a deleted one, and one that failed its review.

    The better reply has a follow-up: two paths end with the assistant, and one path has a second user turn.
    """
    prompt, best, followup, last = turns

    def message(ident: str, parent: str | None, role: str, text: str, rank: int | None = None, **more: Any) -> Row:
        return {
            "message_id": f"{name}-{ident}",
            "parent_id": parent and f"{name}-{parent}",
            "user_id": "somebody",
            "created_date": "2023-02-05T14:23:50.983374+00:00",
            "text": text,
            "role": role,
            "lang": lang,
            "review_count": 3,
            "review_result": True,
            "deleted": False,
            "rank": rank,
            "synthetic": False,
            "model_name": None,
            "detoxify": dict.fromkeys(RISKS, 0.001),
            "message_tree_id": f"{name}-prompt",
            "tree_state": "ready_for_export",
            "emojis": {"name": ["+1"], "count": [2]},
            "labels": {"name": ["spam", "quality"], "value": [0.0, 0.75], "count": [3, 3]},
        } | more

    return [
        message("prompt", None, "prompter", prompt),
        message("other", "prompt", "assistant", f"Nobody knows. {best}", 1),
        message("best", "prompt", "assistant", best, 0),
        message("deleted", "prompt", "assistant", "I take this back.", 2, deleted=True),
        message("followup", "best", "prompter", followup),
        message("last", "followup", "assistant", last, 0),
        message("spam", "followup", "assistant", "Buy my soap!", 1, review_result=False),
    ]


def trees(first: int, last: int) -> list[Row]:
    """Messages of English trees, and of one German tree."""
    german = ["Wie lange hält Brot?", "Drei Tage.", "Und im Kühlen?", "Eine Woche."]
    english = [tree(f"tree{number}", conversation(number)) for number in range(first, last)]
    return [row for rows in [*english, tree(f"baum{last}", german, "de")] for row in rows]


# --- Other datasets: one conversation per row ---


def ultrachat(turns: list[str]) -> Row:
    messages = [{"content": text, "role": ("user", "assistant")[i % 2]} for i, text in enumerate(turns)]
    return {"prompt": turns[0], "prompt_id": hashlib.sha256(turns[0].encode()).hexdigest(), "messages": messages}


def guanaco(turns: list[str]) -> Row:
    return {"text": "".join(f"### {('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(turns))}


def dolly(turns: list[str]) -> Row:
    """The last turn pair, with the earlier turns as context, which is empty in most of the real rows."""
    context = "" if "tea" in turns[0] else " ".join(turns[:2])
    return {"instruction": turns[2], "context": context, "response": turns[3], "category": "closed_qa"}


SPLITS: dict[str, dict[str, list[Row]]] = {
    "OpenAssistant/oasst1": {"train": trees(0, 30), "validation": trees(30, 36)},
    "HuggingFaceH4/ultrachat_200k": {
        "train_sft": [ultrachat(turns) for turns in conversations(0, 40)],
        "test_sft": [ultrachat(turns) for turns in conversations(40, 50)],
        "train_gen": [ultrachat(turns) for turns in conversations(50, 55)],
        "test_gen": [ultrachat(turns) for turns in conversations(55, 60)],
    },
    "timdettmers/openassistant-guanaco": {  # some rows end with the user
        "train": [*map(guanaco, conversations(0, 20)), guanaco(conversation(20)[:3])],
        "test": [guanaco(turns) for turns in conversations(21, 27)],
    },
    "databricks/databricks-dolly-15k": {"train": [dolly(turns) for turns in conversations(0, 60)]},
}
COLUMNS: dict[str, Features] = {
    "OpenAssistant/oasst1": Features(
        dict.fromkeys(("message_id", "parent_id", "user_id", "created_date", "text", "role", "lang"), STRING)
        | {"review_count": INT, "review_result": BOOL, "deleted": BOOL, "rank": INT, "synthetic": BOOL}
        | {
            "model_name": STRING,
            "detoxify": dict.fromkeys(RISKS, FLOAT),
            "message_tree_id": STRING,
            "tree_state": STRING,
        }
        | {"emojis": {"name": List(STRING), "count": List(INT)}}
        | {"labels": {"name": List(STRING), "value": List(FLOAT), "count": List(INT)}}
    ),
    "HuggingFaceH4/ultrachat_200k": Features(
        {"prompt": STRING, "prompt_id": STRING, "messages": List({"content": STRING, "role": STRING})}
    ),
    "timdettmers/openassistant-guanaco": Features({"text": STRING}),
    "databricks/databricks-dolly-15k": Features(
        dict.fromkeys(("instruction", "context", "response", "category"), STRING)
    ),
}
