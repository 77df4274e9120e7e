"""What ``dataset.columns`` should say for a row whose fields have other names than ours."""

import re
from typing import Any

PROMPT_LIKE = ("question", "query", "prompt", "instruction", "request", "input", "user", "human", "source")
COMPLETION_LIKE = ("answer", "best_answer", "response", "output", "reply", "assistant", "target", "completion", "gpt")
OWN = {  # where a row has one of these, it needs no other name
    "prompt": ("prompt", "instruction", "conversations"),
    "completion": ("completion", "reply", "response", "chosen"),
}


def is_turn(value: Any) -> bool:
    """Whether a value looks like a message: an object with a role."""
    return isinstance(value, dict) and bool(value.keys() & {"role", "from"})


def suggest_columns(row: dict[str, Any]) -> str:
    """The value of ``dataset.columns`` that would probably name the row's fields; "" if its own names tell nothing."""
    lists = [name for name, value in row.items() if value and isinstance(value, list) and is_turn(value[0])]
    columns = {"messages": lists[0]} if len(lists) == 1 and "chosen" not in row else {}
    known = {str(name).lower().replace(" ", "_"): name for name in row}
    for ours, names in () if lists else (("prompt", PROMPT_LIKE), ("completion", COMPLETION_LIKE)):
        found = next((known[name] for name in names if name in known), None)
        own = next((name for name in OWN[ours] if name in row), None)
        if found is None and own is None:
            return ""
        if found is not None and own in (None, "instruction") and found != own:
            columns[ours] = found
    written = ", ".join(f"{our}: {quoted(str(name))}" for our, name in columns.items())
    return f" (to name the columns: 'dataset.columns={{{written}}}')" if columns else ""


def quoted(name: str) -> str:
    """A field's name as Hydra's command line takes it in an object."""
    return name if re.fullmatch(r"\w+( \w+)*", name) else f'"{name}"'
