"""What reward models learn from: scores, mismatched and rejected replies beside a conversation of any format."""

import json

import pytest

from manners.data.types import PreferencePair, ScoredReply, preference_pairs, scored_replies
from manners.errors import MannersError
from tests.data.files import ASKED, FORMATS, read, user, write

CHATS = sorted(set(FORMATS) - {"text"})
ADVICE = "Mend the row, or leave such rows out: dataset.on_invalid_row=skip."
NO_SCORE = " (if it is no score: dataset.score_field=none)"


@pytest.mark.parametrize("name", CHATS)
def test_a_row_of_any_format_may_carry_a_score(tmp_path, name):
    row, messages = FORMATS[name][0]
    chats = read(write(tmp_path, row | {"score": 3}), sample_types=["scored"]).train
    assert scored_replies(chats) == [ScoredReply(messages[:-1], messages[-1]["content"], 3.0, "data.jsonl:1")]
    assert isinstance(chats[0].metadata["score"], float)  # 3 and 3.0 are one score, and give one digest


def test_a_plain_text_may_carry_a_score(tmp_path):
    path = write(tmp_path, {"text": "Could you?", "score": 17.5}, {"text": "Do it."})
    splits = read(path, sample_types=["conversation", "scored"])
    assert scored_replies(splits.train) == [ScoredReply([], "Could you?", 17.5, "data.jsonl:1")]
    assert [c.messages[0]["content"] for c in splits.train] == ["Could you?", "Do it."]  # both are there for SFT


def test_rows_without_a_score_stand_beside_others(tmp_path):
    path = write(tmp_path, {"messages": ASKED}, {"messages": ASKED, "score": None}, {"messages": ASKED, "score": 1})
    splits = read(path, sample_types=["conversation", "scored"])
    assert len(splits.train) == 3
    assert [s.source for s in scored_replies(splits.train)] == ["data.jsonl:3"]


OTHER = {"content": "5.", "score": 0.2}
JUDGED = {"prompt": "2 + 2?", "completion": "4."}
BAD = {
    "text": ({"score": "high"}, "field 'score' must be a finite number, not 'high'" + NO_SCORE),
    "number as text": ({"score": "0.5"}, "field 'score' must be a finite number, not '0.5'" + NO_SCORE),
    "true": ({"score": True}, "field 'score' must be a finite number, not True" + NO_SCORE),
    "nan": ({"score": float("nan")}, "field 'score' must be a finite number, not nan" + NO_SCORE),
    "infinite": ({"score": float("-inf")}, "field 'score' must be a finite number, not -inf" + NO_SCORE),
    "vast": ({"score": 10**400}, "field 'score' must be a finite number, not int" + NO_SCORE),
    "list": ({"score": [1.0]}, "field 'score' must be a finite number, not list" + NO_SCORE),
    "mismatched text": (
        {"score": 1, "mismatched": "5."},
        "field 'mismatched' must be a list of objects with 'content' and 'score'",
    ),
    "mismatched texts": (
        {"score": 1, "mismatched": [OTHER, "5."]},
        "field 'mismatched[1]' must be an object with 'content' and 'score'",
    ),
    "mismatched number": (
        {"score": 1, "mismatched": [OTHER | {"content": 5}]},
        "field 'mismatched[0].content' must be text, not int",
    ),
    "mismatched empty": (
        {"score": 1, "mismatched": [OTHER, OTHER | {"content": " "}]},
        "field 'mismatched[1].content' is empty",
    ),
    "mismatched without score": (
        {"score": 1, "mismatched": [{"content": "5."}]},
        "field 'mismatched[0].score' is missing",
    ),
    "mismatched true": (
        {"score": 1, "mismatched": [OTHER | {"score": False}]},
        "field 'mismatched[0].score' must be a finite number, not False",
    ),
    "rejected empty": ({"rejected": " "}, "field 'rejected' is empty"),
    "rejected the same": ({"rejected": "4."}, "field 'rejected' is the same as the reply that is better"),
    "margin text": ({"rejected": "5.", "margin": "big"}, "field 'margin' must be a finite number, not 'big'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_target_is_refused_with_file_line_and_field_or_left_out(tmp_path, name):
    fields, says = BAD[name]
    path = write(tmp_path, JUDGED, JUDGED | fields)
    with pytest.raises(MannersError) as refused:
        read(path)
    assert str(refused.value) == f"data.jsonl:2: {says}. {ADVICE}"
    splits = read(path, on_invalid_row="skip")
    assert splits.skipped == [f"data.jsonl:2: {says}"]
    assert len(splits.train) == 1


def test_a_score_needs_a_reply_that_it_is_of(tmp_path):
    path = write(tmp_path, {"messages": [*ASKED, user("And 3 + 3?")], "score": 1})
    with pytest.raises(MannersError, match=r"data\.jsonl:1: field 'score' judges a reply, and the conversation does"):
        read(path)
    assert len(read(path, score_field="none").train) == 1


# --- dataset.score_field ---


def test_the_score_may_stand_in_another_field(tmp_path):
    path = write(tmp_path, JUDGED | {"rating": 4, "score": "high"}, JUDGED | {"score": 2})
    chats = read(path, sample_types=["scored"], score_field="rating").train
    assert [chat.metadata for chat in chats] == [{"rating": 4, "score": 4.0}, {}]  # 'score' means the rating now


def test_a_bad_score_is_told_by_the_field_it_stands_in(tmp_path):
    with pytest.raises(MannersError, match=r"data\.jsonl:1: field 'rating' must be a finite number, not 'good'"):
        read(write(tmp_path, JUDGED | {"rating": "good"}), score_field="rating")


@pytest.mark.parametrize("rows", [[JUDGED | {"rating": 4, "id": 1}], [JUDGED | {"rating": 4}, JUDGED | {"id": 1}]])
def test_a_dataset_of_scores_in_which_no_row_has_one_is_refused_with_the_fields_that_there_are(tmp_path, rows):
    with pytest.raises(MannersError) as refused:
        read(write(tmp_path, *rows), sample_types=["conversation", "scored"])
    assert str(refused.value) == (
        "dataset.score_field=score: no row has a score there, and dataset.sample_types has 'scored'. The rows have the fields "
        "completion, id, prompt, rating: name the one that holds the score, dataset.score_field=FIELD."
    )
    assert refused.value.key == "dataset.score_field"


def test_a_score_in_any_split_will_do(tmp_path):
    path = write(tmp_path, JUDGED, JUDGED | {"score": 1, "split": "test"})
    assert len(scored_replies(read(path, sample_types=["scored"]).test)) == 1


# --- Pairs ---


def test_a_row_of_any_chat_may_carry_a_rejected_reply(tmp_path):
    path = write(tmp_path, {"messages": ASKED, "rejected": "5.", "margin": 2}, {"messages": ASKED})
    found = read(path, sample_types=["preference"]).train
    assert preference_pairs(found) == [PreferencePair(ASKED[:1], "4.", "5.", 2.0, "data.jsonl:1")]


@pytest.mark.parametrize("value", [False, ["5."]])
def test_a_field_called_rejected_may_be_another_matter_where_no_pairs_are_promised(tmp_path, value):
    path = write(tmp_path, {"messages": ASKED, "rejected": value, "margin": "wide"})
    assert read(path).train[0].metadata == {}
    with pytest.raises(MannersError, match=r"data\.jsonl:1: field 'rejected' must be text, not (bool|list)"):
        read(path, sample_types=["preference"])


def test_a_dataset_of_pairs_in_which_no_row_has_two_replies_is_refused(tmp_path):
    equal = JUDGED | {"score": 1, "mismatched": [OTHER | {"score": 1}]}
    with pytest.raises(MannersError) as refused:
        read(write(tmp_path, JUDGED, equal), sample_types=["preference"])
    assert str(refused.value) == (
        "dataset.sample_types has 'preference', and no row has a 'rejected' reply, or a score above that of its 'mismatched' "
        "replies. The rows have the fields completion, mismatched, prompt, score."
    )


def test_a_json_list_tells_the_row_of_a_bad_score(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([JUDGED, JUDGED | {"score": "0.5"}]))
    with pytest.raises(MannersError, match=r"^data\.json, row 2: field 'score' must be a finite number, not '0.5'"):
        read(path)
