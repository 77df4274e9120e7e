"""OpenAssistant's message trees (Köpf et al. 2023, arXiv 2304.07327) → conversations from root to leaf.

They come in two forms: the hub's flat table, where a row is a message that names its parent, and tree files, where a
row is a whole tree. Replies branch, so paths share their beginnings; each message carries loss in the first path
through it only.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from manners.data.formats.fields import InvalidRow, is_empty, nested_field, number_field, text_field
from manners.data.types import Conversation

ROLE_NAMES = {"prompter": "user", "assistant": "assistant"}
USED_FIELDS = {
    *("message_id", "parent_id", "message_tree_id", "prompt", "replies", "role", "text", "lang", "split"),
    *("rank", "deleted", "synthetic", "review_result"),
}
PARENT_EXCLUDED = "below an excluded message"


@dataclass(frozen=True)
class TreeConversations:
    conversations: list[Conversation]
    excluded: Counter[str]  # reason → number of messages
    invalid: list[tuple[str, InvalidRow]]  # (source, error), in the order of the file
    unused: list[str]  # the names of fields that nothing reads


@dataclass(eq=False)
class Node:
    """A message in its tree."""

    source: str
    row: dict = field(default_factory=dict)
    path: str = ""  # "prompt.replies[0]": the message's place in the row of a tree file; "" in the flat table
    parent: "Node | None" = None
    root: "Node | None" = None  # None if its ancestors form a cycle
    replies: list["Node"] = field(default_factory=list)
    exclusion: InvalidRow | str | None = None  # the error or the reason for which it is left out; None keeps it


def is_oasst_row(row: Any) -> bool:
    """Whether a raw row is a tree, or a message of the flat table."""
    if not isinstance(row, dict) or "message_tree_id" not in row:
        return False
    return isinstance(row.get("prompt"), dict) or {"message_id", "role", "text"} <= row.keys()


def read_trees(
    rows: Iterable[tuple[str, Any]], loss_roles: str, languages: Sequence[str], keep_flagged: Sequence[str]
) -> TreeConversations:
    """The conversations in ``rows`` of (source, row or InvalidRow): one for each path with a turn to train on.

    A message of ``loss_roles`` carries loss in the first path through it, and is a masked turn in all others. Among
    replies the best rank goes first and replies without a rank last; ties go by message id, so that the order of the
    rows in a flat table decides nothing but which tree comes first.

    Excluded, each with everything below it: deleted messages, synthetic ones, those that failed the review, and those
    in other languages than ``languages``, if it names any. ``keep_flagged`` ("deleted", "synthetic", "unreviewed")
    keeps the first three. A message without a review result is kept: it was not rejected, and excluding a tree's first
    message would lose the reviewed rest. A tree is used in whatever state it is, finished or not, since the quality of
    its messages is in their own fields. Excluded messages need not be well-formed except for their ids.
    """
    nodes = [node for source, row in rows for node in flatten(source, row)]
    link_parents(nodes)
    exclude(nodes, languages, keep_flagged)
    conversations: list[Conversation] = []
    already_trained: set[Node] = set()
    for root in dict.fromkeys(node.root for node in nodes):
        for path in root_to_leaf_paths(root) if root and root.exclusion is None else ():
            trained = [i for i, node in enumerate(path) if loss_roles in ("all", ROLE_NAMES[node.row["role"]])]
            masked = tuple(i for i in trained if path[i] in already_trained)
            if len(masked) < len(trained):
                already_trained.update(path[i] for i in trained)
                conversations.append(path_conversation(path, masked))
    excluded = Counter(node.exclusion for node in nodes if isinstance(node.exclusion, str))
    invalid = [(node.source, node.exclusion) for node in nodes if isinstance(node.exclusion, InvalidRow)]
    fields = dict.fromkeys(name for node in nodes for name, value in node.row.items() if not is_empty(value))
    return TreeConversations(conversations, excluded, invalid, [name for name in fields if name not in USED_FIELDS])


def flatten(source: str, row: Any) -> list[Node]:
    """The messages of a row: one of the flat table, or all of a tree, parents before their replies.

    Raises InvalidRow.
    """
    try:
        if isinstance(row, InvalidRow):
            raise row
        if not isinstance(row, dict):
            raise InvalidRow(f"a row must be a JSON object, not {type(row).__name__}")
        text_field(row, "message_tree_id")
    except InvalidRow as error:
        return [Node(source, exclusion=error)]
    if "prompt" not in row:
        return [Node(source, row)]
    nodes = [tree_node(source, row["prompt"], "prompt")]
    nodes[0].row |= {name: row[name] for name in ("message_tree_id", "split") if name in row}
    for node in nodes:  # grows while it is traversed
        replies = node.row.get("replies") or []
        if not isinstance(replies, list):
            node.exclusion, replies = InvalidRow(f"field '{node.path}.replies' must be a list"), []
        node.replies = [tree_node(source, reply, f"{node.path}.replies[{i}]", node) for i, reply in enumerate(replies)]
        nodes += node.replies
    return nodes


def tree_node(source: str, value: Any, path: str, parent: Node | None = None) -> Node:
    """The message at ``path`` of a tree, invalid if it is not an object."""
    if isinstance(value, dict):
        return Node(source, dict(value), path, parent)
    error = InvalidRow(f"field '{path}' must be an object with the message's fields")
    return Node(source, {}, path, parent, exclusion=error)


def link_parents(nodes: list[Node]) -> None:
    """Set the parent of each message of a flat table; invalid are messages without a unique id or a known parent.

    Raises InvalidRow.
    """
    by_id: dict[str, Node] = {}
    for node in nodes:
        if node.exclusion:
            continue
        try:
            with field_names_of(node):
                message_id = text_field(node.row, "message_id")
                if message_id in by_id:
                    raise InvalidRow(
                        f"field 'message_id' is '{message_id}', the same as of a message at {by_id[message_id].source}"
                    )
            by_id[message_id] = node
        except InvalidRow as error:
            node.exclusion = error
    for node in nodes:
        parent_id = node.row.get("parent_id")
        if node.exclusion or node.path or parent_id is None:  # in a tree file the position decides
            continue
        if isinstance(parent_id, str) and parent_id in by_id:
            node.parent = by_id[parent_id]
            node.parent.replies.append(node)
        else:
            node.exclusion = InvalidRow(f"field 'parent_id' is '{parent_id}', and no row has that message_id")


def exclude(nodes: list[Node], languages: Sequence[str], keep_flagged: Sequence[str]) -> None:
    """Set the root and exclusion of each message, parents first, since exclusion extends to everything below."""
    queue = [node for node in nodes if node.parent is None]
    for node in queue:  # grows while it is traversed
        queue += node.replies
        node.root = node.parent.root if node.parent else node
        if node.exclusion:
            continue
        if node.parent and node.parent.exclusion:
            node.exclusion = PARENT_EXCLUDED
            continue
        try:
            with field_names_of(node):
                node.exclusion = exclusion_reason(node, languages, keep_flagged)
        except InvalidRow as error:
            node.exclusion = error
    for node in nodes:
        if node.root is None:
            node.exclusion = InvalidRow("field 'parent_id' leads to no first message: the ancestors form a cycle")


def exclusion_reason(node: Node, languages: Sequence[str], keep_flagged: Sequence[str]) -> str | None:
    """Why a message whose parent is kept is excluded, or None. Raises InvalidRow for one that cannot be used."""
    row = node.row
    for name in ("deleted", "synthetic"):
        if optional_bool(row, name) and name not in keep_flagged:
            return name
    if optional_bool(row, "review_result") is False and "unreviewed" not in keep_flagged:
        return "failed the review"
    if languages and text_field(row, "lang") not in languages:
        return f"language {row['lang']}"
    text_field(row, "text")
    role = text_field(row, "role")
    if role not in ROLE_NAMES:
        raise InvalidRow(f"field 'role' is '{role}': expected {' or '.join(ROLE_NAMES)}")
    expected = "assistant" if node.parent and node.parent.row["role"] == "prompter" else "prompter"
    if role != expected:
        raise InvalidRow(f"field 'role' is '{role}': expected '{expected}' at this place")
    if row.get("rank") is not None:
        number_field(row, "rank")
    return None


def optional_bool(row: dict, name: str) -> bool | None:
    """True, False or None, also if the field is missing. Raises InvalidRow for any other value."""
    value = row.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRow(f"field '{name}' must be true, false or null, not {type(value).__name__}")
    return value


def root_to_leaf_paths(root: Node) -> Iterator[tuple[Node, ...]]:
    """Yield the path from the root to each leaf among the kept messages, the best replies first."""
    stack: list[tuple[Node, ...]] = [(root,)]
    while stack:
        path = stack.pop()
        kept = sorted((node for node in path[-1].replies if node.exclusion is None), key=rank_key, reverse=True)
        stack += [(*path, node) for node in kept]
        if not kept:
            yield path


def rank_key(node: Node) -> tuple[bool, float, str]:
    """Sorts replies by rank, those without a rank last, ties by id."""
    rank = node.row.get("rank")
    return rank is None, rank or 0, node.row["message_id"]


def path_conversation(path: tuple[Node, ...], masked_turns: tuple[int, ...]) -> Conversation:
    """The messages on a path as a conversation, with the metadata of the tree."""
    first, leaf = path[0].row, path[-1]
    messages = [{"role": ROLE_NAMES[node.row["role"]], "content": node.row["text"]} for node in path]
    metadata = {name: first[name] for name in ("message_tree_id", "lang", "split") if name in first}
    return Conversation(messages, f"{leaf.source} (leaf {leaf.row['message_id'][:8]})", metadata, masked_turns)


def field_names_of(node: Node) -> AbstractContextManager[None]:
    """Errors name a field by its place in the row: 'text' becomes 'prompt.replies[0].text' in a tree."""
    return nested_field(node.path) if node.path else nullcontext()
