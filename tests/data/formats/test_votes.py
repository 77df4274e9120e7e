import pytest

from manners.data.formats.votes import read_votes, vote_conversations
from manners.data.types import preference_pairs
from manners.errors import MannersError
from tests.data.files import read, write

PROMPT = [{"role": "user", "content": "Why is the earth flat?"}]


def row(verdict, number=1, replies=("It is round.", "It is flat."), **fields):
    shown = [{"text": text, "model": f"run-{i}"} for i, text in enumerate(replies)]
    return {"vote": verdict, "id": f"v{number}", "prompt": PROMPT, "replies": shown, "annotator": "ann"} | fields


def numbered(rows):
    return [(f"votes.jsonl:{n}", row) for n, row in enumerate(rows, 1)]


def conversations_of(*rows):
    return vote_conversations(read_votes(numbered(rows)).votes)


@pytest.mark.parametrize(("verdict", "chosen", "rejected"), [("first", 0, 1), ("second", 1, 0)])
def test_the_better_reply_is_chosen_over_the_other(verdict, chosen, rejected):
    replies = ("It is round.", "It is flat.")
    conversations, excluded = conversations_of(row(verdict))
    [pair] = preference_pairs(conversations)
    assert (pair.messages, pair.chosen, pair.rejected) == (PROMPT, replies[chosen], replies[rejected])
    assert not excluded and not conversations[0].masked_turns


def test_an_edited_reply_is_chosen_over_the_one_that_was_edited():
    conversations, _ = conversations_of(row("edit", edited="Round, and measured to be so."))
    [pair] = preference_pairs(conversations)
    assert (pair.chosen, pair.rejected) == ("Round, and measured to be so.", "It is round.")


def test_labels_are_of_one_reply_and_two_bad_ones_give_two():
    conversations, _ = conversations_of(row("good", 1, ["Yes."]), row("bad", 2, ["No."]), row("both_bad", 3))
    labels = [(c.messages[-1]["content"], c.metadata["label"], bool(c.masked_turns)) for c in conversations]
    bad = [(text, False, True) for text in ("No.", "It is round.", "It is flat.")]
    assert labels == [("Yes.", True, False), *bad]  # what carries no loss is never imitated


def test_a_vote_that_was_taken_back_counts_no_more():
    found = read_votes(numbered([row("first", 1), row("second", 2), {"vote": "undo", "undone": "v1"}]))
    assert [vote.id for vote in found.votes] == ["v2"] and found.undone == 1 and not found.invalid


def test_ties_skips_and_empty_replies_train_nothing():
    conversations, excluded = conversations_of(row("tie", 1), row("skip", 2), row("first", 3, ["", "It is flat."]))
    assert conversations == []
    assert excluded == {"a tie": 1, "skipped": 1, "an empty reply, or twice the same": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vote": "frist"}, "field 'vote' is 'frist'. Did you mean 'first'?"),
        ({"replies": [{"text": "One.", "model": "a"}]}, "field 'replies' has 1 of them, and the vote is 'first'"),
        ({"replies": ["One.", "Two."]}, "field 'replies' must be a list of objects with 'text' and 'model'"),
        ({"vote": "edit"}, "field 'edited' is missing"),
        ({"vote": "undo", "undone": "v7"}, "field 'undone': no earlier row has the id 'v7'"),
    ],
)
def test_a_malformed_vote_is_refused_by_line_and_field(tmp_path, change, message):
    file = write(tmp_path, row("first", 1), row("first", 2) | change, name="votes.jsonl")
    with pytest.raises(MannersError) as error:
        read(file)
    assert str(error.value).startswith(f"votes.jsonl:2: {message}")


def test_two_votes_with_one_id_are_refused(tmp_path):
    with pytest.raises(MannersError, match=r"votes\.jsonl:2: field 'id': votes\.jsonl:1 has the same id, 'v1'"):
        read(write(tmp_path, row("first", 1), row("second", 1), name="votes.jsonl"))


def test_dataset_jsonl_reads_votes_and_says_what_it_leaves_out(tmp_path):
    rows = [row("first", 1), row("bad", 2, ["It is flat."]), row("tie", 3), {"vote": "undo", "undone": "v3"}]
    splits = read(write(tmp_path, *rows))
    found = [*splits.train, *splits.validation, *splits.test]
    assert [c.messages[-1]["content"] for c in found] == ["It is round."]
    assert "1 votes: taken back" in splits.notes
    assert any(note.startswith("1 rows: label is false") for note in splits.notes)
