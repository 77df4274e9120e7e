"""The fields that reward models train on: scores, mismatched and rejected replies, in rows of any format."""

import json

import pytest

from manners.data.types import PreferencePair, ScoredReply, preference_pairs, scored_replies
from manners.errors import MannersError
from tests.data.files import EXCHANGE, FORMATS, read, user, write

ROLE_FORMATS = sorted(set(FORMATS) - {"text"})
HINT = "Fix the row, or skip such rows: dataset.on_invalid_row=skip."
NO_SCORE = " (if the field is not a score: dataset.score_field=none)"


@pytest.mark.parametrize("name", ROLE_FORMATS)
def test_row_of_any_format_may_have_a_score(tmp_path, name):
    row, messages = FORMATS[name][0]
    chats = read(write(tmp_path, row | {"score": 3}), sample_types=["scored"]).train
    assert scored_replies(chats) == [ScoredReply(messages[:-1], messages[-1]["content"], 3.0, "data.jsonl:1")]
    assert isinstance(chats[0].metadata["score"], float)  # 3 and 3.0 are one score and give one digest


def test_plain_text_may_have_a_score(tmp_path):
    path = write(tmp_path, {"text": "Could you?", "score": 17.5}, {"text": "Do it."})
    splits = read(path, sample_types=["conversation", "scored"])
    assert scored_replies(splits.train) == [ScoredReply([], "Could you?", 17.5, "data.jsonl:1")]
    assert [c.messages[0]["content"] for c in splits.train] == ["Could you?", "Do it."]  # both are used by SFT


def test_rows_without_a_score_are_kept_for_sft(tmp_path):
    path = write(
        tmp_path, {"messages": EXCHANGE}, {"messages": EXCHANGE, "score": None}, {"messages": EXCHANGE, "score": 1}
    )
    splits = read(path, sample_types=["conversation", "scored"])
    assert len(splits.train) == 3
    assert [s.source for s in scored_replies(splits.train)] == ["data.jsonl:3"]


OTHER = {"content": "5.", "score": 0.2}
ROW = {"prompt": "2 + 2?", "completion": "4."}
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
    "rejected the same": ({"rejected": "4."}, "field 'rejected' is the same as the chosen reply"),
    "margin negative": ({"rejected": "5.", "margin": -1}, "field 'margin' must be at least 0, not -1"),
    "margin text": ({"rejected": "5.", "margin": "big"}, "field 'margin' must be a finite number, not 'big'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_invalid_reward_field_is_refused_or_skipped(tmp_path, name):
    fields, expected = BAD[name]
    path = write(tmp_path, ROW, ROW | fields)
    with pytest.raises(MannersError) as error:
        read(path)
    assert str(error.value) == f"data.jsonl:2: {expected}. {HINT}"
    splits = read(path, on_invalid_row="skip")
    assert splits.skipped == [f"data.jsonl:2: {expected}"]
    assert len(splits.train) == 1


def test_score_without_a_reply_is_refused(tmp_path):
    path = write(tmp_path, {"messages": [*EXCHANGE, user("And 3 + 3?")], "score": 1})
    with pytest.raises(MannersError, match=r"data\.jsonl:1: field 'score' needs a reply, but the conversation does"):
        read(path)
    assert len(read(path, score_field="none").train) == 1


# --- dataset.score_field ---


def test_score_field_may_be_another_field(tmp_path):
    path = write(tmp_path, ROW | {"rating": 4, "score": "high"}, ROW | {"score": 2})
    chats = read(path, sample_types=["scored"], score_field="rating").train
    assert [chat.metadata for chat in chats] == [{"rating": 4, "score": 4.0}, {}]  # 'score' is the rating now


def test_invalid_score_names_its_own_field(tmp_path):
    with pytest.raises(MannersError, match=r"data\.jsonl:1: field 'rating' must be a finite number, not 'good'"):
        read(write(tmp_path, ROW | {"rating": "good"}), score_field="rating")


@pytest.mark.parametrize("rows", [[ROW | {"rating": 4, "id": 1}], [ROW | {"rating": 4}, ROW | {"id": 1}]])
def test_scored_dataset_without_scores_names_its_fields(tmp_path, rows):
    path = write(tmp_path, *rows)
    with pytest.raises(MannersError) as error:
        read(path, sample_types=["conversation", "scored"])
    assert str(error.value) == (
        f"dataset.score_field=score: no row of {path} has a score there. "
        "The rows have the fields completion, id, prompt, rating: name the one that holds the score, "
        "dataset.score_field=FIELD."
    )
    assert error.value.key == "dataset.score_field"


def test_score_in_any_split_is_enough(tmp_path):
    path = write(tmp_path, ROW, ROW | {"score": 1, "split": "test"})
    assert len(scored_replies(read(path, sample_types=["scored"]).test)) == 1


# --- Pairs ---


def test_row_of_any_format_may_have_a_rejected_reply(tmp_path):
    path = write(tmp_path, {"messages": EXCHANGE, "rejected": "5.", "margin": 2}, {"messages": EXCHANGE})
    rows = read(path, sample_types=["preference"]).train
    assert preference_pairs(rows) == [PreferencePair(EXCHANGE[:1], "4.", "5.", 2.0, "data.jsonl:1")]


@pytest.mark.parametrize("value", [False, ["5."]])
def test_rejected_field_of_another_meaning_is_ignored(tmp_path, value):
    path = write(tmp_path, {"messages": EXCHANGE, "rejected": value, "margin": "wide"})
    assert read(path).train[0].metadata == {}
    with pytest.raises(MannersError, match=r"data\.jsonl:1: field 'rejected' must be text, not (bool|list)"):
        read(path, sample_types=["preference"])


def test_preference_dataset_without_pairs_is_refused(tmp_path):
    equal = ROW | {"score": 1, "mismatched": [OTHER | {"score": 1}]}
    path = write(tmp_path, ROW, equal)
    with pytest.raises(MannersError) as error:
        read(path, sample_types=["preference"])
    assert str(error.value) == (
        f"dataset.path={path}: no row has a 'chosen' and a 'rejected' reply, or a score above that of one of its "
        "'mismatched' replies. The rows have the fields completion, mismatched, prompt, score."
    )


def test_invalid_score_in_a_json_list_names_its_row(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([ROW, ROW | {"score": "0.5"}]))
    with pytest.raises(MannersError, match=r"^data\.json, row 2: field 'score' must be a finite number, not '0.5'"):
        read(path)
