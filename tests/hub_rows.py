"""Rows for the hub's datasets, in their true columns and splits. What they say is ours."""

import hashlib
from typing import Any

from datasets import Features, List, Value

TEXT, COUNT, SHARE, TRUTH = (Value(kind) for kind in ("string", "int32", "float64", "bool"))
THINGS = ("bread", "soup", "tea", "jam", "rice", "cheese", "honey", "butter", "salad", "coffee", "porridge", "cake")
RISKS = ("toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit")
Row = dict[str, Any]


def talk(number: int) -> list[str]:
    """Four turns, the user's first; other ones for each number."""
    thing = THINGS[number % len(THINGS)]
    return [
        f"How long does {thing} keep on shelf {number}?",
        f"Most {thing} keeps for {number + 2} days there.",
        f"And if the {thing} stands in the cold?",
        f"Then it keeps for {2 * number + 4} days.",
    ]


def talks(first: int, last: int) -> list[list[str]]:
    return [talk(number) for number in range(first, last)]


# --- OpenAssistant/oasst1: a message a row ---


def tree(name: str, turns: list[str], lang: str = "en") -> list[Row]:
    """A prompt with two replies, of which the better goes on; one that was deleted, and one that failed its review.

    The assistant says something new on two of its paths, the user on one.
    """
    prompt, best, again, end = turns

    def said(ident: str, above: str | None, role: str, text: str, rank: int | None = None, **more: Any) -> Row:
        return {
            "message_id": f"{name}-{ident}",
            "parent_id": above and f"{name}-{above}",
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
        said("prompt", None, "prompter", prompt),
        said("other", "prompt", "assistant", f"Nobody knows. {best}", 1),
        said("best", "prompt", "assistant", best, 0),
        said("gone", "prompt", "assistant", "I take this back.", 2, deleted=True),
        said("again", "best", "prompter", again),
        said("end", "again", "assistant", end, 0),
        said("spam", "again", "assistant", "Buy my soap!", 1, review_result=False),
    ]


def trees(first: int, last: int) -> list[Row]:
    """English ones, and one in German."""
    german = ["Wie lange hält Brot?", "Drei Tage.", "Und im Kühlen?", "Eine Woche."]
    english = [tree(f"tree{number}", talk(number)) for number in range(first, last)]
    return [row for one in [*english, tree(f"baum{last}", german, "de")] for row in one]


# --- The others: a conversation a row ---


def ultrachat(turns: list[str]) -> Row:
    said = [{"content": text, "role": ("user", "assistant")[i % 2]} for i, text in enumerate(turns)]
    return {"prompt": turns[0], "prompt_id": hashlib.sha256(turns[0].encode()).hexdigest(), "messages": said}


def guanaco(turns: list[str]) -> Row:
    return {"text": "".join(f"### {('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(turns))}


def dolly(turns: list[str]) -> Row:
    """The last reply; what was said before is the context, which most of the real rows leave empty."""
    context = "" if "tea" in turns[0] else " ".join(turns[:2])
    return {"instruction": turns[2], "context": context, "response": turns[3], "category": "closed_qa"}


SPLITS: dict[str, dict[str, list[Row]]] = {
    "OpenAssistant/oasst1": {"train": trees(0, 30), "validation": trees(30, 36)},
    "HuggingFaceH4/ultrachat_200k": {
        "train_sft": [ultrachat(turns) for turns in talks(0, 40)],
        "test_sft": [ultrachat(turns) for turns in talks(40, 50)],
        "train_gen": [ultrachat(turns) for turns in talks(50, 55)],
        "test_gen": [ultrachat(turns) for turns in talks(55, 60)],
    },
    "timdettmers/openassistant-guanaco": {  # some rows end with the user
        "train": [*map(guanaco, talks(0, 20)), guanaco(talk(20)[:3])],
        "test": [guanaco(turns) for turns in talks(21, 27)],
    },
    "databricks/databricks-dolly-15k": {"train": [dolly(turns) for turns in talks(0, 60)]},
}
COLUMNS: dict[str, Features] = {
    "OpenAssistant/oasst1": Features(
        dict.fromkeys(("message_id", "parent_id", "user_id", "created_date", "text", "role", "lang"), TEXT)
        | {"review_count": COUNT, "review_result": TRUTH, "deleted": TRUTH, "rank": COUNT, "synthetic": TRUTH}
        | {"model_name": TEXT, "detoxify": dict.fromkeys(RISKS, SHARE), "message_tree_id": TEXT, "tree_state": TEXT}
        | {"emojis": {"name": List(TEXT), "count": List(COUNT)}}
        | {"labels": {"name": List(TEXT), "value": List(SHARE), "count": List(COUNT)}}
    ),
    "HuggingFaceH4/ultrachat_200k": Features(
        {"prompt": TEXT, "prompt_id": TEXT, "messages": List({"content": TEXT, "role": TEXT})}
    ),
    "timdettmers/openassistant-guanaco": Features({"text": TEXT}),
    "databricks/databricks-dolly-15k": Features(
        dict.fromkeys(("instruction", "context", "response", "category"), TEXT)
    ),
}
