"""OpenAssistant's message trees: small ones written by hand, in both forms, and sixty real ones if available.

The real file is expected in the folder MANNERS_DATA, by default shared/data beside the checkout.
"""

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from manners.data.formats.conversations import check_messages
from manners.data.formats.fields import InvalidRow
from manners.data.formats.oasst import is_oasst_row, read_trees
from tests.data.files import FORMATS, assistant, user


def message(name, *replies, **fields):
    """A message of a tree: p… has the role prompter and a… assistant; its text is its name in capitals."""
    role = "prompter" if name.startswith("p") else "assistant"
    return {"message_id": name, "role": role, "text": name.upper(), "lang": "en", "replies": list(replies)} | fields


def tree(prompt, **fields):
    return {"message_tree_id": prompt["message_id"], "tree_state": "ready_for_export", "prompt": prompt} | fields


def table(*trees):
    """The same messages in the hub's flat table, one a row."""
    rows = []
    for one in trees:
        todo = [(one["prompt"], None)]
        for message, parent in todo:
            todo += [(reply, message["message_id"]) for reply in message["replies"]]
            shared = {"parent_id": parent} | {k: v for k, v in one.items() if k != "prompt"}
            rows.append(shared | {k: v for k, v in message.items() if k != "replies"})
    return rows


def numbered(rows):
    return [(f"f.jsonl:{n}", row) for n, row in enumerate(rows, 1)]


def read(*rows, loss_roles="assistant", languages=(), keep_flagged=()):
    return read_trees(numbered(rows), loss_roles, languages, keep_flagged)


def texts(result):
    """(text, masked turns) of each conversation."""
    return [(" ".join(m["content"] for m in c.messages), c.masked_turns) for c in result.conversations]


#   p ─ a1 (rank 1) ─ p1 ─ a2 (no rank)
#     │                  └ a3 (rank 0)
#     ├ a4 (rank 0) ─ p3 ─ a5
#     │             └ p2
#     └ a6 (no rank)
A1, P3 = message("a1", message("p1", message("a2"), message("a3", rank=0)), rank=1), message("p3", message("a5"))
BRANCHED = tree(message("p", A1, message("a4", P3, message("p2"), rank=0), message("a6", rank=None)))
PATHS = {
    "assistant": [("P A4 P2", ()), ("P A4 P3 A5", (1,)), ("P A1 P1 A3", ()), ("P A1 P1 A2", (1,)), ("P A6", ())],
    "user": [("P A4 P2", ()), ("P A4 P3 A5", (0,)), ("P A1 P1 A3", (0,))],
    "all": [("P A4 P2", ()), ("P A4 P3 A5", (0, 1)), ("P A1 P1 A3", (0,)), ("P A1 P1 A2", (0, 1, 2)), ("P A6", (0,))],
    "system": [],
}


@pytest.mark.parametrize("loss_roles", PATHS)
def test_best_path_comes_first_and_trains_the_shared_turns(loss_roles):
    result = read(BRANCHED, loss_roles=loss_roles)
    assert (texts(result), result.excluded, result.invalid) == (PATHS[loss_roles], Counter(), [])


def test_conversation_has_roles_source_and_metadata():
    prompt = message("p", message("a", message("p-of-a-long-name"), rank=0), lang="en")
    [conversation] = read({"message_tree_id": "t", "prompt": prompt, "split": "validation"}).conversations
    assert conversation.messages == [user("P"), assistant("A"), user("P-OF-A-LONG-NAME")]
    assert conversation.source == "f.jsonl:1 (leaf p-of-a-l)"
    assert conversation.metadata == {"message_tree_id": "t", "lang": "en", "split": "validation"}
    assert read(tree(message("p", message("a")))).conversations[0].metadata == {"message_tree_id": "p", "lang": "en"}


TWO = [BRANCHED, tree(message("px", message("ax"), lang="de"), split="test")]


@pytest.mark.parametrize("loss_roles", PATHS)
def test_flat_table_gives_the_conversations_of_the_trees(loss_roles):
    from_trees, from_rows = read(*TWO, loss_roles=loss_roles), read(*table(*TWO), loss_roles=loss_roles)
    assert texts(from_rows) == texts(from_trees)
    assert [c.metadata for c in from_rows.conversations] == [c.metadata for c in from_trees.conversations]
    if from_rows.conversations:
        assert from_rows.conversations[0].source == "f.jsonl:7 (leaf p2)"  # p, a1, a4, a6, p1, p3, p2


def test_fields_that_nothing_reads_are_named():
    extra = tree(message("p", message("a", surplus=1, emojis={}), model_name="x"))
    assert read(extra).unused == ["model_name", "surplus"]
    assert read(*table(extra)).unused == ["tree_state", "model_name", "surplus"]


def test_row_order_decides_only_which_tree_is_first():
    rows = table(*TWO)
    separately = [texts(read(one)) for one in TWO]
    for seed in range(20):
        random.Random(seed).shuffle(rows)
        first = rows[0]["message_tree_id"] != "p"
        assert texts(read(*rows)) == separately[first] + separately[not first], seed


# --- Excluded messages ---


def small(**fields):
    """p ─ a1 ─ p1 ─ a2, and p ─ a3: the ``fields`` are those of a1."""
    a1 = message("a1", message("p1", message("a2")), **{"rank": 0} | fields)
    return tree(message("p", a1, message("a3", rank=1)))


ALL_PATHS, REST = [("P A1 P1 A2", ()), ("P A3", ())], [("P A3", ())]


@pytest.mark.parametrize(
    ("fields", "reason", "kept_by"),
    [
        ({"deleted": True}, "deleted", {"keep_flagged": ["deleted"]}),
        ({"synthetic": True}, "synthetic", {"keep_flagged": ["synthetic"]}),
        ({"review_result": False}, "failed the review", {"keep_flagged": ["unreviewed"]}),
        ({"lang": "de"}, "language de", {"languages": ["en", "de"]}),
        ({"deleted": True, "text": "", "role": "?", "rank": "?"}, "deleted", {}),
    ],
)
@pytest.mark.parametrize("form", ["tree", "table"])
def test_message_is_excluded_with_everything_below_it(form, fields, reason, kept_by):
    rows = [small(**fields)] if form == "tree" else table(small(**fields))
    result = read(*rows, languages=["en"])
    assert (texts(result), result.invalid) == (REST, [])
    assert result.excluded == Counter({reason: 1, "below an excluded message": 2})
    if kept_by:
        kept = read(*rows, **{"languages": ["en"]} | kept_by)
        assert (texts(kept), kept.excluded) == (ALL_PATHS, Counter())


@pytest.mark.parametrize(
    "fields", [{"review_result": None}, {"review_result": True, "deleted": False}, {"synthetic": None}, {"lang": "xx"}]
)
def test_message_without_an_objection_is_kept(fields):
    result = read(small(**fields))
    assert (texts(result), result.excluded) == (ALL_PATHS, Counter())


def test_tree_is_kept_in_any_state_unless_its_root_is_excluded():
    assert texts(read(small() | {"tree_state": "aborted_low_grade"})) == ALL_PATHS
    assert read(tree(message("p", message("a"), synthetic=True))).conversations == []


def test_message_whose_replies_are_all_excluded_is_a_leaf():
    for replies in (None, [], [message("p1", deleted=True)]):
        assert texts(read(tree(message("p", message("a", replies=replies))))) == [("P A", ())]


def test_tree_file_ignores_parent_id():
    assert texts(read(small(parent_id="nowhere"))) == ALL_PATHS


# --- Invalid messages ---

INVALID = [
    ({"text": " "}, "field '{}text' is empty"),
    ({"text": None}, "field '{}text' must be text, not NoneType"),
    ({"text": "\ud83d"}, "field '{}text' has half of a surrogate pair"),
    ({"role": "bot"}, "field '{}role' is 'bot': expected prompter or assistant"),
    ({"role": "prompter"}, "field '{}role' is 'prompter': expected 'assistant' at this place"),
    ({"rank": "best"}, "field '{}rank' must be a finite number, not 'best'"),
    ({"deleted": "False"}, "field '{}deleted' must be true, false or null, not str"),
    ({"lang": None}, "field '{}lang' must be text, not NoneType"),
]


@pytest.mark.parametrize(("fields", "expected"), INVALID)
@pytest.mark.parametrize("form", ["tree", "table"])
def test_malformed_message_is_named_by_its_place(form, fields, expected):
    rows, path = ([small(**fields)], "prompt.replies[0].") if form == "tree" else (table(small(**fields)), "")
    result = read(*rows, languages=["en"])
    [(source, error)] = result.invalid
    assert (source, str(error)) == (f"f.jsonl:{1 if path else 2}", expected.format(path))
    assert (texts(result), result.excluded) == (REST, Counter({"below an excluded message": 2}))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("", "is empty"), (7, "must be text, not int"), ("p", "is 'p', the same as of a message at f.jsonl:1")],
)
def test_missing_or_duplicate_message_id_is_refused(name, expected):
    result = read(small(message_id=name))
    assert [str(error) for _, error in result.invalid] == [f"field 'prompt.replies[0].message_id' {expected}"]
    assert (texts(result), result.excluded) == (REST, Counter({"below an excluded message": 2}))
    rows = [row | ({"message_id": name} if row["message_id"] == "a3" else {}) for row in table(small())]
    [(source, error)] = read(*rows).invalid
    assert (source, str(error)) == ("f.jsonl:3", f"field 'message_id' {expected}")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([], "a row must be a JSON object, not list"),
        ({"message_tree_id": "t"}, "field 'message_id' is missing"),
        ({"message_id": "p", "role": "prompter", "text": "P"}, "field 'message_tree_id' is missing"),
        ({"message_tree_id": "t", "prompt": "P"}, "field 'prompt' must be an object with the message's fields"),
        (tree(message("p", replies="a")), "field 'prompt.replies' must be a list"),
        (tree(message("p", "A")), "field 'prompt.replies[0]' must be an object with the message's fields"),
        (tree(message("a")), "field 'prompt.role' is 'assistant': expected 'prompter' at this place"),
        (table(tree(message("a")))[0], "field 'role' is 'assistant': expected 'prompter' at this place"),
        (table(small(parent_id=["p"]))[1], "field 'parent_id' is '['p']', and no row has that message_id"),
        (InvalidRow("byte 7 is not UTF-8"), "byte 7 is not UTF-8"),
    ],
)
def test_malformed_row_is_refused(row, expected):
    result = read(row, tree(message("p9", message("a9"))))
    assert [(source, str(error)) for source, error in result.invalid] == [("f.jsonl:1", expected)]
    assert texts(result) == [("P9 A9", ())]


def test_message_with_an_unknown_parent_is_refused():
    result = read(*(row for row in table(small()) if row["message_id"] != "a1"))  # p, a3, p1, a2
    [(source, error)] = result.invalid
    assert (source, str(error)) == ("f.jsonl:3", "field 'parent_id' is 'a1', and no row has that message_id")
    assert (texts(result), result.excluded) == (REST, Counter({"below an excluded message": 1}))


@pytest.mark.parametrize("links", [{"p1": "p1"}, {"p1": "a1", "a1": "p1"}])
def test_messages_in_a_cycle_are_all_refused(links):
    rows = [row | {"parent_id": links.get(row["message_id"], row["parent_id"])} for row in table(small())]
    result = read(*rows)
    lost = {"p1", "a2", *links}
    assert [source for source, _ in result.invalid] == [w for w, row in numbered(rows) if row["message_id"] in lost]
    message = "field 'parent_id' leads to no first message: the ancestors form a cycle"
    assert {str(error) for _, error in result.invalid} == {message}
    assert texts(result) == ([("P A1", ()), *REST] if "a1" not in lost else REST)


def test_invalid_rows_come_in_the_order_of_the_file():
    rows = table(small())[::-1]  # a2, p1, a3, a1, p: replies come before their parents
    for at in (0, 2):
        rows[at]["text"] = ""
    assert [source for source, _ in read(*rows).invalid] == ["f.jsonl:1", "f.jsonl:3"]


def test_duplicate_tree_is_used_once():
    result = read(small(), small())
    assert (texts(result), [source for source, _ in result.invalid]) == (ALL_PATHS, ["f.jsonl:2"] * 5)


def test_is_oasst_row_rejects_all_other_formats():
    assert is_oasst_row(small()) and all(map(is_oasst_row, table(small())))
    assert not any(is_oasst_row(row) for rows in FORMATS.values() for row, _ in rows)
    assert not is_oasst_row({"prompt": {"a": 1}, "completion": "b"})
    assert not is_oasst_row({"message_tree_id": "t", "prompt": "2 + 2?", "completion": "4."})
    assert not is_oasst_row({"message_tree_id": "t", "messages": [user("2 + 2?")]}) and not is_oasst_row([])


# --- The real file ---

REAL = Path(os.environ.get("MANNERS_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


@pytest.fixture(scope="module")
def real():
    path = REAL / "oasst_trees_60.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def expected_counts(real, loss_roles):
    """How often each text should carry loss, counted independently: no synthetic message, and none below one."""
    result, todo = Counter(), [row["prompt"] for row in real]
    for message in todo:
        if not message["synthetic"]:
            todo += message["replies"]
            result[message["text"]] += loss_roles in ("all", {"prompter": "user"}.get(message["role"], "assistant"))
    return +result


@pytest.mark.parametrize("loss_roles", ["assistant", "user", "all"])
def test_each_real_message_carries_loss_exactly_once(real, loss_roles):
    result = read(*real, loss_roles=loss_roles, languages=["en"])
    with_loss = Counter(
        m["content"]
        for conversation in result.conversations
        for i, m in enumerate(conversation.messages)
        if loss_roles in ("all", m["role"]) and i not in conversation.masked_turns
    )
    assert with_loss == expected_counts(real, loss_roles) and with_loss.total() > 200
    # In four trees, 17 of 684 messages.
    assert result.excluded == Counter({"synthetic": 4, "below an excluded message": 13})
    assert result.invalid == []
    for conversation in result.conversations:
        check_messages(conversation.messages, loss_roles)
    assert texts(read(*table(*real), loss_roles=loss_roles, languages=["en"])) == texts(result)


def test_all_messages_of_sixty_real_trees_can_be_kept(real):
    result = read(*real, loss_roles="all", keep_flagged=["synthetic"])
    assert sum(len(c.messages) - len(c.masked_turns) for c in result.conversations) == 684
    assert len({c.metadata["message_tree_id"] for c in result.conversations}) == 60
