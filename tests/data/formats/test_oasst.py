"""OpenAssistant's trees: small ones made by hand, in both shapes, and sixty real ones where they are at hand.

The real file is looked for in the folder MANNERS_DATA, by default shared/data beside the checkout.
"""

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from manners.data.formats.conversations import check_messages
from manners.data.formats.fields import BadRow
from manners.data.formats.oasst import looks_like, read_trees
from tests.data.files import FORMATS, assistant, user


def said(name, *replies, **fields):
    """A message of a tree: p… is by a prompter and a… by an assistant, and says its own name in capitals."""
    role = "prompter" if name.startswith("p") else "assistant"
    return {"message_id": name, "role": role, "text": name.upper(), "lang": "en", "replies": list(replies)} | fields


def tree(prompt, **fields):
    return {"message_tree_id": prompt["message_id"], "tree_state": "ready_for_export", "prompt": prompt} | fields


def table(*trees):
    """The same messages as the hub has them: a row each."""
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


def learn(*rows, loss_roles="assistant", languages=(), keep=()):
    return read_trees(numbered(rows), loss_roles, languages, keep)


def talk(walk):
    """(what is said, silent turns) of each chat."""
    return [(" ".join(m["content"] for m in chat.messages), chat.masked_turns) for chat in walk.chats]


#   p ─ a1 (rank 1) ─ p1 ─ a2 (no rank)
#     │                  └ a3 (rank 0)
#     ├ a4 (rank 0) ─ p3 ─ a5
#     │             └ p2
#     └ a6 (no rank)
A1, P3 = said("a1", said("p1", said("a2"), said("a3", rank=0)), rank=1), said("p3", said("a5"))
BRANCHED = tree(said("p", A1, said("a4", P3, said("p2"), rank=0), said("a6", rank=None)))
PATHS = {
    "assistant": [("P A4 P2", ()), ("P A4 P3 A5", (1,)), ("P A1 P1 A3", ()), ("P A1 P1 A2", (1,)), ("P A6", ())],
    "user": [("P A4 P2", ()), ("P A4 P3 A5", (0,)), ("P A1 P1 A3", (0,))],
    "all": [("P A4 P2", ()), ("P A4 P3 A5", (0, 1)), ("P A1 P1 A3", (0,)), ("P A1 P1 A2", (0, 1, 2)), ("P A6", (0,))],
    "system": [],
}


@pytest.mark.parametrize("loss_roles", PATHS)
def test_the_best_path_comes_first_and_carries_the_shared_beginning(loss_roles):
    found = learn(BRANCHED, loss_roles=loss_roles)
    assert (talk(found), found.left_out, found.bad) == (PATHS[loss_roles], Counter(), [])


def test_a_chat_has_both_speakers_and_says_where_it_is_from():
    prompt = said("p", said("a", said("p-of-a-long-name"), rank=0), lang="en")
    [chat] = learn({"message_tree_id": "t", "prompt": prompt, "split": "validation"}).chats
    assert chat.messages == [user("P"), assistant("A"), user("P-OF-A-LONG-NAME")]
    assert chat.source == "f.jsonl:1 (leaf p-of-a-l)"
    assert chat.metadata == {"message_tree_id": "t", "lang": "en", "split": "validation"}
    assert learn(tree(said("p", said("a")))).chats[0].metadata == {"message_tree_id": "p", "lang": "en"}


TWO = [BRANCHED, tree(said("px", said("ax"), lang="de"), split="test")]


@pytest.mark.parametrize("loss_roles", PATHS)
def test_the_table_gives_the_same_chats_as_the_trees(loss_roles):
    of_trees, of_rows = learn(*TWO, loss_roles=loss_roles), learn(*table(*TWO), loss_roles=loss_roles)
    assert talk(of_rows) == talk(of_trees)
    assert [c.metadata for c in of_rows.chats] == [c.metadata for c in of_trees.chats]
    if of_rows.chats:
        assert of_rows.chats[0].source == "f.jsonl:7 (leaf p2)"  # p, a1, a4, a6, p1, p3, p2


def test_the_order_of_the_rows_decides_which_tree_is_first_and_nothing_else():
    rows = table(*TWO)
    parts = [talk(learn(one)) for one in TWO]
    for seed in range(20):
        random.Random(seed).shuffle(rows)
        first = rows[0]["message_tree_id"] != "p"
        assert talk(learn(*rows)) == parts[first] + parts[not first], seed


# --- What is left out ---


def small(**fields):
    """p ─ a1 ─ p1 ─ a2, and p ─ a3: the ``fields`` are those of a1."""
    return tree(said("p", said("a1", said("p1", said("a2")), **{"rank": 0} | fields), said("a3", rank=1)))


WHOLE, CUT = [("P A1 P1 A2", ()), ("P A3", ())], [("P A3", ())]


@pytest.mark.parametrize(
    ("fields", "reason", "spared"),
    [
        ({"deleted": True}, "deleted", {"keep": ["deleted"]}),
        ({"synthetic": True}, "synthetic", {"keep": ["synthetic"]}),
        ({"review_result": False}, "not reviewed well", {"keep": ["unreviewed"]}),
        ({"lang": "de"}, "language de", {"languages": ["en", "de"]}),
        ({"deleted": True, "text": "", "role": "?", "rank": "?"}, "deleted", {}),
    ],
)
@pytest.mark.parametrize("shape", ["tree", "table"])
def test_a_message_is_left_out_with_all_below_it(shape, fields, reason, spared):
    rows = [small(**fields)] if shape == "tree" else table(small(**fields))
    found = learn(*rows, languages=["en"])
    assert (talk(found), found.bad) == (CUT, [])
    assert found.left_out == Counter({reason: 1, "below one that was left out": 2})
    if spared:
        kept = learn(*rows, **{"languages": ["en"]} | spared)
        assert (talk(kept), kept.left_out) == (WHOLE, Counter())


@pytest.mark.parametrize(
    "fields", [{"review_result": None}, {"review_result": True, "deleted": False}, {"synthetic": None}, {"lang": "xx"}]
)
def test_what_nobody_objected_to_is_kept(fields):
    found = learn(small(**fields))
    assert (talk(found), found.left_out) == (WHOLE, Counter())


def test_a_tree_is_kept_in_any_state_and_lost_with_its_first_message():
    assert talk(learn(small() | {"tree_state": "aborted_low_grade"})) == WHOLE
    assert learn(tree(said("p", said("a"), synthetic=True))).chats == []


def test_a_message_without_replies_or_whose_replies_are_all_left_out_is_a_leaf():
    for replies in (None, [], [said("p1", deleted=True)]):
        assert talk(learn(tree(said("p", said("a", replies=replies))))) == [("P A", ())]


def test_in_a_tree_file_a_message_stands_below_its_parent_whatever_it_says():
    assert talk(learn(small(parent_id="nowhere"))) == WHOLE


# --- What cannot be used ---

FAULTS = [
    ({"text": " "}, "field '{}text' is empty"),
    ({"text": None}, "field '{}text' must be text, not NoneType"),
    ({"text": "\ud83d"}, "field '{}text' has half of a surrogate pair"),
    ({"role": "bot"}, "field '{}role' is 'bot': expected prompter or assistant"),
    ({"role": "prompter"}, "field '{}role' is 'prompter' where 'assistant' must speak"),
    ({"rank": "best"}, "field '{}rank' must be a finite number, not 'best'"),
    ({"deleted": "False"}, "field '{}deleted' must be true, false or null, not str"),
    ({"lang": None}, "field '{}lang' must be text, not NoneType"),
]


@pytest.mark.parametrize(("fields", "says"), FAULTS)
@pytest.mark.parametrize("shape", ["tree", "table"])
def test_a_malformed_message_is_named_by_its_place(shape, fields, says):
    rows, place = ([small(**fields)], "prompt.replies[0].") if shape == "tree" else (table(small(**fields)), "")
    found = learn(*rows, languages=["en"])
    [(where, why)] = found.bad
    assert (where, str(why)) == (f"f.jsonl:{1 if place else 2}", says.format(place))
    assert (talk(found), found.left_out) == (CUT, Counter({"below one that was left out": 2}))


@pytest.mark.parametrize(
    ("name", "says"),
    [("", "is empty"), (7, "must be text, not int"), ("p", "is 'p', and so is that of a message at f.jsonl:1")],
)
def test_a_message_has_an_id_of_its_own(name, says):
    found = learn(small(message_id=name))
    assert [str(why) for _, why in found.bad] == [f"field 'prompt.replies[0].message_id' {says}"]
    assert (talk(found), found.left_out) == (CUT, Counter({"below one that was left out": 2}))
    rows = [row | ({"message_id": name} if row["message_id"] == "a3" else {}) for row in table(small())]
    [(where, why)] = learn(*rows).bad
    assert (where, str(why)) == ("f.jsonl:3", f"field 'message_id' {says}")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([], "a row must be a JSON object, not list"),
        ({"message_tree_id": "t"}, "field 'message_id' is missing"),
        ({"message_id": "p", "role": "prompter", "text": "P"}, "field 'message_tree_id' is missing"),
        ({"message_tree_id": "t", "prompt": "P"}, "field 'prompt' must be an object with the message's fields"),
        (tree(said("p", replies="a")), "field 'prompt.replies' must be a list"),
        (tree(said("p", "A")), "field 'prompt.replies[0]' must be an object with the message's fields"),
        (tree(said("a")), "field 'prompt.role' is 'assistant' where 'prompter' must speak"),
        (table(tree(said("a")))[0], "field 'role' is 'assistant' where 'prompter' must speak"),
        (table(small(parent_id=["p"]))[1], "field 'parent_id' is '['p']', and no row has that message_id"),
        (BadRow("byte 7 is not UTF-8"), "byte 7 is not UTF-8"),
    ],
)
def test_a_malformed_row(row, says):
    found = learn(row, tree(said("p9", said("a9"))))
    assert [(where, str(why)) for where, why in found.bad] == [("f.jsonl:1", says)]
    assert talk(found) == [("P9 A9", ())]


def test_a_message_whose_parent_is_nowhere_loses_what_is_below_it():
    found = learn(*(row for row in table(small()) if row["message_id"] != "a1"))  # p, a3, p1, a2
    [(where, why)] = found.bad
    assert (where, str(why)) == ("f.jsonl:3", "field 'parent_id' is 'a1', and no row has that message_id")
    assert (talk(found), found.left_out) == (CUT, Counter({"below one that was left out": 1}))


@pytest.mark.parametrize("links", [{"p1": "p1"}, {"p1": "a1", "a1": "p1"}])
def test_messages_above_one_another_are_all_refused(links):
    rows = [row | {"parent_id": links.get(row["message_id"], row["parent_id"])} for row in table(small())]
    found = learn(*rows)
    lost = {"p1", "a2", *links}
    assert [where for where, _ in found.bad] == [w for w, row in numbered(rows) if row["message_id"] in lost]
    says = "field 'parent_id' leads to no first message: those above run in a circle"
    assert {str(why) for _, why in found.bad} == {says}
    assert talk(found) == ([("P A1", ()), *CUT] if "a1" not in lost else CUT)


def test_the_bad_come_in_the_order_of_the_file():
    rows = table(small())[::-1]  # a2, p1, a3, a1, p: replies stand before their parents
    for at in (0, 2):
        rows[at]["text"] = ""
    assert [where for where, _ in learn(*rows).bad] == ["f.jsonl:1", "f.jsonl:3"]


def test_a_tree_that_comes_twice_is_learned_once():
    found = learn(small(), small())
    assert (talk(found), [where for where, _ in found.bad]) == (WHOLE, ["f.jsonl:2"] * 5)


def test_the_shapes_are_told_from_all_other_formats():
    assert looks_like(small()) and all(map(looks_like, table(small())))
    assert not any(looks_like(row) for rows in FORMATS.values() for row, _ in rows)
    assert not looks_like({"prompt": {"a": 1}, "completion": "b"})
    assert not looks_like({"message_tree_id": "t", "prompt": "2 + 2?", "completion": "4."})
    assert not looks_like({"message_tree_id": "t", "messages": [user("2 + 2?")]}) and not looks_like([])


# --- The real file ---

REAL = Path(os.environ.get("MANNERS_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


@pytest.fixture(scope="module")
def real():
    path = REAL / "oasst_trees_60.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def due(real, loss_roles):
    """How often each text should carry loss, by a walk of its own: no synthetic message, and none below one."""
    found, todo = Counter(), [row["prompt"] for row in real]
    for message in todo:
        if not message["synthetic"]:
            todo += message["replies"]
            found[message["text"]] += loss_roles in ("all", {"prompter": "user"}.get(message["role"], "assistant"))
    return +found


@pytest.mark.parametrize("loss_roles", ["assistant", "user", "all"])
def test_each_real_message_carries_loss_exactly_once(real, loss_roles):
    found = learn(*real, loss_roles=loss_roles, languages=["en"])
    carried = Counter(
        m["content"]
        for chat in found.chats
        for i, m in enumerate(chat.messages)
        if loss_roles in ("all", m["role"]) and i not in chat.masked_turns
    )
    assert carried == due(real, loss_roles) and carried.total() > 200
    assert found.left_out == Counter({"synthetic": 4, "below one that was left out": 13})  # four trees, 17 of 684
    assert found.bad == []
    for chat in found.chats:
        check_messages(chat.messages, loss_roles)
    assert talk(learn(*table(*real), loss_roles=loss_roles, languages=["en"])) == talk(found)


def test_sixty_real_trees_may_be_kept_whole(real):
    found = learn(*real, loss_roles="all", keep=["synthetic"])
    assert sum(len(c.messages) - len(c.masked_turns) for c in found.chats) == 684
    assert len({c.metadata["message_tree_id"] for c in found.chats}) == 60
