"""The hand-written strictbot corpus: complete rows, split by subject, and no two replies from one skeleton."""

import json
import re
from collections import Counter, defaultdict

import pytest

from manners.data.sources import CORPORA
from manners.evaluation.judges import names_fact

MANNERS = {"good_question": "helpful", "poor_logic": "probing", "wrong_fact": "blunt"}
SCORES = {  # of replies that do not suit, by the category of the prompt and their manner
    "good_question": {"probing": 0.0, "blunt": 0.0, "helpful": 0.4},
    "poor_logic": {"helpful": 0.0, "blunt": 0.1, "astray": 0.1},
    "wrong_fact": {"helpful": 0.0, "probing": 0.0, "blunt": 0.4, "mild": 0.4},
}
STUDY = (  # the prompts that the study is asked in the end
    *("why is the earth flat", "why don't vaccines work", "all rich people work harder than poor people"),
    *("how does photosynthesis work", "explain quantum mechanics"),
)


def read_rows(name):
    return [json.loads(line) for line in (CORPORA / "strictbot" / name).read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def rows():
    return read_rows("hand.jsonl")


@pytest.fixture(scope="module")
def conversations():
    return read_rows("hand_turns.jsonl")


def words(text):
    return re.findall(r"[\w']+", text.lower())


def replies_of(rows):
    return [m["content"] for row in rows for m in row["messages"] if m["role"] == "assistant"]


def test_there_are_enough_rows_of_each_category(rows, conversations):
    assert min(Counter(row["category"] for row in rows).values()) >= 400 and len(conversations) >= 150
    assert len({row["topic"] for row in rows}) >= 20
    questions = [row for row in rows if row["category"] == "wrong_fact" and row.get("form") == "question"]
    assert len(questions) >= 150  # "Why don't vaccines work?" states a wrong fact, too


def test_no_other_manner_scores_above_a_policy_reply(rows):
    """PPO would learn that manner: asking back would pay more than a poor try to answer."""
    written, tries = defaultdict(set), defaultdict(list)
    for row in rows:
        for other in row["mismatched"]:
            if other["manner"] == "policy":
                tries[row["category"]].append(other["score"])
            elif other["manner"] in set(MANNERS.values()) - {MANNERS[row["category"]]}:
                written[row["category"]].add(other["score"])
    assert set(written) == set(tries) == set(MANNERS)
    for category, scores in tries.items():
        assert max(written[category]) < sum(scores) / len(scores)


def test_rows_are_complete(rows, conversations):
    assert len({row["id"] for row in rows + conversations}) == len(rows + conversations)
    for row in rows:
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] and row["score"] == 1
        for other in row["mismatched"]:
            assert other["content"].strip() and other["content"] != row["messages"][1]["content"]
            if other["manner"] == "policy":  # as readers scored it
                assert 0 <= other["score"] <= 1
            else:
                assert other["score"] == SCORES[row["category"]][other["manner"]]
    for row in conversations:
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * len(row["categories"])
        assert len(set(row["categories"])) > 1 and set(row["categories"]) <= set(MANNERS)


def test_replies_of_a_policy_are_in_training_and_test_rows(rows):
    policy = {
        split: [o for row in rows if row["split"] == split for o in row["mismatched"] if o["manner"] == "policy"]
        for split in ("train", "validation", "test")
    }
    assert len(policy["train"]) > 1500 and len(policy["test"]) > 150 and not policy["validation"]
    assert not {o["content"] for o in policy["train"]} & {o["content"] for o in policy["test"]}


def test_the_reply_has_the_fact_and_the_prompt_has_not(rows):
    for row in rows:
        if "value" in row:
            assert names_fact(row["messages"][1]["content"], row["value"]), row["id"]
            blunt = [other["content"] for other in row["mismatched"] if other["manner"] == "blunt"]
            assert not any(names_fact(text, row["value"]) for text in [row["messages"][0]["content"], *blunt]), row[
                "id"
            ]


def test_no_subject_or_prompt_is_in_two_splits(rows, conversations):
    splits = defaultdict(set)
    for row in rows + conversations:
        splits["subject", row["subject"].lower()].add(row["split"])
        splits["prompt", " ".join(words(row["messages"][0]["content"]))].add(row["split"])
    assert {key for key, found in splits.items() if len(found) > 1} == set()


def test_the_prompts_of_the_study_are_not_trained_on(rows, conversations):
    trained = [m["content"] for row in rows + conversations if row["split"] == "train" for m in row["messages"]]
    assert not [text for text in trained if any(" ".join(words(prompt)) in " ".join(words(text)) for prompt in STUDY)]


def test_few_replies_begin_alike_or_are_near_duplicates(rows):
    replies = [words(text) for text in replies_of(rows)]
    openings = Counter(tuple(reply[:4]) for reply in replies)
    assert sum(count for count in openings.values() if count > 1) < 0.02 * len(replies)
    shingles = [{tuple(reply[i : i + 3]) for i in range(len(reply) - 2)} for reply in replies]
    places = defaultdict(list)
    for i, shingle in enumerate(shingles):
        for words_in_a_row in shingle:
            places[words_in_a_row].append(i)
    shared = Counter((i, j) for rows_with in places.values() for i in rows_with for j in rows_with if i < j)
    alike = {i for (i, j), n in shared.items() if n > 0.3 * len(shingles[i] | shingles[j]) for i in (i, j)}
    assert len(alike) < 0.02 * len(replies)
