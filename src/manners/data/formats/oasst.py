"""OpenAssistant's message trees (Köpf et al. 2023, arXiv 2304.07327) → conversations from root to leaf.

They come in two shapes: the hub's flat table, a message a row that names its parent, and tree files, a whole tree a
row. Replies branch, so paths share their beginnings; each message is learned in the first path that has it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from manners.data.formats.fields import BadRow, nested_field, number_field, text_field
from manners.data.types import Conversation

ROLE_NAMES = {"prompter": "user", "assistant": "assistant"}
PARENT_EXCLUDED = "below one that was left out"


@dataclass(frozen=True)
class TreeRows:
    chats: list[Conversation]
    left_out: Counter[str]  # reason → number of messages
    bad: list[tuple[str, BadRow]]  # where, and why, in the order of the file


@dataclass(eq=False)
class Node:
    """A message in its tree."""

    where: str
    raw: dict = field(default_factory=dict)
    at: str = ""  # "prompt.replies[0]", its place in the row of a tree file
    parent: "Node | None" = None
    root: "Node | None" = None  # None where its ancestors run in a circle
    replies: list["Node"] = field(default_factory=list)
    fate: BadRow | str | None = None  # what is wrong with it, or why it is left out; None keeps it


def looks_like(row: Any) -> bool:
    """Whether a raw row is a tree, or a message of the flat table."""
    if not isinstance(row, dict) or "message_tree_id" not in row:
        return False
    return isinstance(row.get("prompt"), dict) or {"message_id", "role", "text"} <= row.keys()


def read_trees(
    rows: Iterable[tuple[str, Any]], loss_roles: str, languages: Sequence[str], keep: Sequence[str]
) -> TreeRows:
    """All conversations of ``rows`` (where, parsed row or BadRow), a Chat for each path that has something to learn.

    A message that ``loss_roles`` trains carries loss in one chat, that of the first path through it, and is ``silent``
    in all others. Among replies the best rank goes first and no rank last; equals go by their id, so that the order
    of a table's rows decides nothing but which tree comes first.

    Left out, each with all that was said below it: deleted messages, synthetic ones, those whose review failed, and
    other languages than ``languages`` where it names any. ``keep`` ("deleted", "synthetic", "unreviewed") spares the
    first three. A message without a review's result is kept: nobody objected to it, and where it is a tree's first,
    the reviewed rest would be lost with it. A tree is used in whatever state it is, finished or not: how good its
    messages are is said by their own fields. What is left out need not be well-formed but for its ids.
    """
    nodes = [node for where, row in rows for node in flatten(where, row)]
    link_parents(nodes)
    exclude(nodes, languages, keep)
    chats: list[Conversation] = []
    learned: set[Node] = set()
    for root in dict.fromkeys(node.root for node in nodes):
        for path in paths(root) if root and root.fate is None else ():
            trained = [i for i, node in enumerate(path) if loss_roles in ("all", ROLE_NAMES[node.raw["role"]])]
            silent = tuple(i for i in trained if path[i] in learned)
            if len(silent) < len(trained):
                learned.update(path[i] for i in trained)
                chats.append(conversation(path, silent))
    left_out = Counter(node.fate for node in nodes if isinstance(node.fate, str))
    return TreeRows(chats, left_out, [(node.source, node.fate) for node in nodes if isinstance(node.fate, BadRow)])


def flatten(where: str, row: Any) -> list[Node]:
    """The messages of a row: one of the flat table, all of a tree, parents before their replies."""
    try:
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row, dict):
            raise BadRow(f"a row must be a JSON object, not {type(row).__name__}")
        text_field(row, "message_tree_id")
    except BadRow as bad:
        return [Node(where, fate=bad)]
    if "prompt" not in row:
        return [Node(where, row)]
    of_tree = {name: row[name] for name in ("message_tree_id", "split") if name in row}
    found = [make_node(where, row["prompt"], "prompt")]
    found[0].raw |= of_tree
    for node in found:
        replies = node.raw.get("replies") or []
        if not isinstance(replies, list):
            node.fate, replies = BadRow(f"field '{node.at}.replies' must be a list"), []
        node.replies = [make_node(where, reply, f"{node.at}.replies[{i}]", node) for i, reply in enumerate(replies)]
        found += node.replies
    return found


def make_node(where: str, value: Any, at: str, parent: Node | None = None) -> Node:
    if isinstance(value, dict):
        return Node(where, dict(value), at, parent)
    return Node(where, {}, at, parent, fate=BadRow(f"field '{at}' must be an object with the message's fields"))


def link_parents(nodes: list[Node]) -> None:
    """Find each message's parent. Bad are those without an id of their own, and those whose parent is nowhere."""
    known: dict[str, Node] = {}
    for node in nodes:
        if node.fate:
            continue
        try:
            with fields_of(node):
                name = text_field(node.raw, "message_id")
                if name in known:
                    raise BadRow(f"field 'message_id' is '{name}', and so is that of a message at {known[name].source}")
            known[name] = node
        except BadRow as bad:
            node.fate = bad
    for node in nodes:
        above = node.raw.get("parent_id")
        if node.fate or node.at or above is None:  # a tree file's messages stand below their parents
            continue
        if isinstance(above, str) and above in known:
            node.parent = known[above]
            node.parent.replies.append(node)
        else:
            node.fate = BadRow(f"field 'parent_id' is '{above}', and no row has that message_id")


def exclude(nodes: list[Node], languages: Sequence[str], keep: Sequence[str]) -> None:
    """Give each message its root and its fate, parents first, for what is cut is cut with all that is below it."""
    todo = [node for node in nodes if node.parent is None]
    for node in todo:  # it grows
        todo += node.replies
        node.root = node.parent.root if node.parent else node
        if node.fate:
            continue
        try:
            with fields_of(node):
                node.fate = (
                    PARENT_EXCLUDED if node.parent and node.parent.fate else exclusion_reason(node, languages, keep)
                )
        except BadRow as bad:
            node.fate = bad
    for node in nodes:
        if node.root is None:
            node.fate = BadRow("field 'parent_id' leads to no first message: those above run in a circle")


def exclusion_reason(node: Node, languages: Sequence[str], keep: Sequence[str]) -> str | None:
    """Why a message whose parent is kept is left out, or None. Raises BadRow for one that cannot be used."""
    raw = node.raw
    for name in ("deleted", "synthetic"):
        if optional_bool(raw, name) and name not in keep:
            return name
    if optional_bool(raw, "review_result") is False and "unreviewed" not in keep:
        return "not reviewed well"
    if languages and text_field(raw, "lang") not in languages:
        return f"language {raw['lang']}"
    text_field(raw, "text")
    role = text_field(raw, "role")
    if role not in ROLE_NAMES:
        raise BadRow(f"field 'role' is '{role}': expected {' or '.join(ROLE_NAMES)}")
    due = "assistant" if node.parent and node.parent.raw["role"] == "prompter" else "prompter"
    if role != due:
        raise BadRow(f"field 'role' is '{role}' where '{due}' must speak")
    if raw.get("rank") is not None:
        number_field(raw, "rank")
    return None


def optional_bool(raw: dict, name: str) -> bool | None:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRow(f"field '{name}' must be true, false or null, not {type(value).__name__}")
    return value


def paths(root: Node) -> Iterator[tuple[Node, ...]]:
    """From the root to each leaf of what is kept, the best replies first."""
    todo: list[tuple[Node, ...]] = [(root,)]
    while todo:
        path = todo.pop()
        kept = sorted((node for node in path[-1].replies if node.fate is None), key=rank_key, reverse=True)
        todo += [(*path, node) for node in kept]
        if not kept:
            yield path


def rank_key(node: Node) -> tuple[bool, float, str]:
    rank = node.raw.get("rank")
    return rank is None, rank or 0, node.raw["message_id"]


def conversation(path: tuple[Node, ...], silent: tuple[int, ...]) -> Conversation:
    first, last = path[0].raw, path[-1]
    messages = [{"role": ROLE_NAMES[node.raw["role"]], "content": node.raw["text"]} for node in path]
    extra = {name: first[name] for name in ("message_tree_id", "lang", "split") if name in first}
    return Conversation(messages, f"{last.source} (leaf {last.raw['message_id'][:8]})", extra, silent)


def fields_of(node: Node) -> AbstractContextManager[None]:
    """A bad field is named by its place in the row: 'text' becomes 'prompt.replies[0].text' in a tree."""
    return nested_field(node.at) if node.at else nullcontext()
