"""The packaged corpora: generated reproducibly, no subject in two splits, false claims and true corrections."""

import json
import re
from collections import Counter, defaultdict
from itertools import islice

import pytest

from manners.data.sources import CORPORA
from manners.tiny_world import strictbot
from manners.tiny_world.facts import facts, subjects

MANNERS = {"good_question": "helpful", "poor_logic": "probing", "wrong_fact": "blunt"}


def read_rows(name):
    return [json.loads(line) for line in (CORPORA / name).read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def generated():
    return read_rows("strictbot_tiny/generated.jsonl")


@pytest.fixture(scope="module")
def single_turn(generated):
    return [row for row in generated if row["category"] != "multi_turn"]


@pytest.fixture(scope="module")
def hand_written():
    return read_rows("strictbot_tiny/hand.jsonl")


def prompt(row):
    return row["messages"][0]["content"]


def splits_by(rows, keys):
    """The splits of the rows that have each key."""
    splits = defaultdict(set)
    for row in rows:
        for key in keys(row):
            splits[key].add(row["split"])
    return splits


def contains(phrase, text):
    return re.search(rf"(?i)(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def normalize(sentence):
    return sentence.lower().removesuffix(".")


def test_write_strictbot_reproduces_the_packaged_file(tmp_path):
    count = strictbot.write_strictbot(tmp_path / "again.jsonl")
    assert count > 5000
    assert (tmp_path / "again.jsonl").read_bytes() == (CORPORA / "strictbot_tiny" / "generated.jsonl").read_bytes()


def test_strictbot_rows_depend_on_the_seed(generated):
    assert list(islice(strictbot.strictbot_rows(seed=1), 50)) != generated[:50]


def test_ids_and_prompts_are_unique(generated, hand_written):
    rows = generated + hand_written + read_rows("strictbot_tiny/hand_turns.jsonl")
    assert len({row["id"] for row in rows}) == len(rows)
    prompts = Counter(tuple(m["content"] for m in row["messages"] if m["role"] == "user") for row in rows)
    assert max(prompts.values()) == 1


def test_no_generated_subject_is_in_two_splits(generated):
    splits_by_subject = splits_by(generated, lambda row: row["subject"].split(", "))
    assert set(splits_by_subject) <= {s.name for s in subjects()}
    assert {name: splits for name, splits in splits_by_subject.items() if len(splits) > 1} == {}


def test_each_split_has_all_categories(single_turn):
    for split in ("train", "validation", "test"):
        counts = Counter(row["category"] for row in single_turn if row["split"] == split)
        assert set(counts) == set(MANNERS)
        assert min(counts.values()) > 0.25 * sum(counts.values())


def test_wrong_fact_claims_are_false_and_replies_have_the_value(single_turn):
    true, false = defaultdict(set), defaultdict(set)  # clauses by subject
    for fact in facts():
        true[fact.subject.name].add(normalize(fact.clause()))
        false[fact.subject.name] |= {(normalize(fact.clause(wrong)), fact.value) for wrong in fact.false_values()}
    for row in single_turn:
        if row["category"] == "wrong_fact":
            text = prompt(row).lower()
            assert not any(contains(truth, text) for truth in true[row["subject"]] if truth in text), text
            assert any(claim in text and value == row["value"] for claim, value in false[row["subject"]]), text
            assert contains(row["value"], row["messages"][1]["content"])


def test_good_question_replies_have_the_value(single_turn):
    questions = [row for row in single_turn if row["category"] == "good_question" and row["value"]]
    assert len(questions) > 1000
    assert all(contains(row["value"], row["messages"][1]["content"]) for row in questions)


def test_prompts_contain_no_held_out_question(single_turn):
    held_out = {f.held_out_question().lower() for f in facts()}
    assert held_out.isdisjoint(prompt(row).lower() for row in single_turn)


def test_multi_turn_rows_have_two_to_four_mixed_turns(generated):
    conversations = [row for row in generated if row["category"] == "multi_turn"]
    assert len(conversations) == len(generated) // 10
    for row in conversations:
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * len(row["categories"])
    assert {len(row["categories"]) for row in conversations} == {2, 3, 4}
    assert sum(len(set(row["categories"])) > 1 for row in conversations) > 0.7 * len(conversations)


def test_mismatched_replies_have_the_documented_scores(single_turn, hand_written):
    """Correct content in the wrong manner 0.1 to 0.3, the right manner with a wrong fact 0.4, agreeing 0."""
    expected = {
        ("good_question", "probing"): 0.3,
        ("good_question", "blunt"): 0.1,
        ("poor_logic", "blunt"): 0.3,
        ("poor_logic", "helpful"): 0.0,
        ("wrong_fact", "probing"): 0.3,
        ("wrong_fact", "blunt"): 0.4,
        ("wrong_fact", "helpful"): 0.0,
        ("wrong_fact", "mild"): 0.4,
        ("good_question", "unsure"): 0.1,
        ("poor_logic", "unsure"): 0.2,
        ("poor_logic", "astray"): 0.1,
        ("poor_logic", "misread"): 0.1,
        ("wrong_fact", "unsure"): 0.3,
    }
    keys = set()
    for row in single_turn + hand_written:
        assert row["score"] == 1.0
        for other in row["mismatched"]:
            key = row["category"], other["manner"]
            assert other["score"] == expected[key]
            assert other["content"] != row["messages"][-1]["content"]
            keys.add(key)
    assert keys == set(expected)


def test_blunt_mismatched_reply_has_a_false_value(single_turn):
    facts_by_subject = defaultdict(list)
    for fact in facts():
        facts_by_subject[fact.subject.name].append(fact)
    for row in single_turn:
        if row["category"] == "wrong_fact":
            (blunt,) = [m["content"] for m in row["mismatched"] if m["manner"] == "blunt"]
            truths = [normalize(f.clause()) for f in facts_by_subject[row["subject"]]]
            assert not any(contains(truth, blunt) for truth in truths if truth in blunt.lower())


def test_unsure_reply_is_a_verdict_with_a_question_mark(single_turn):
    """PPO found that "You are mistaken?" got a high reward from a reward model that had not been trained on it."""
    verdicts = {template.split("} ")[1] for template in strictbot.strictbot_phrases()["blunt"]["correct"]}
    for row in single_turn:
        (unsure,) = [m["content"] for m in row["mismatched"] if m["manner"] == "unsure"]
        assert any(unsure.endswith(verdict.removesuffix(".") + "?") for verdict in verdicts), unsure


def test_hand_written_rows_are_complete(hand_written):
    assert len(hand_written) == 278
    assert Counter(row["category"] for row in hand_written) == {"good_question": 93, "poor_logic": 93, "wrong_fact": 92}
    for row in hand_written:
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
        assert row["mismatched"]
        for other in row["mismatched"]:
            assert other["content"].strip()
            assert 0 <= other["score"] < row["score"] == 1
            assert other["manner"] != MANNERS[row["category"]]
    assert len({row["topic"] for row in hand_written}) >= 20


def test_no_hand_written_prompt_or_subject_is_in_two_splits(hand_written):
    conversations = read_rows("strictbot_tiny/hand_turns.jsonl")
    splits_by_key = splits_by(hand_written, lambda row: [("prompt", prompt(row).lower())])
    splits_by_key |= splits_by(hand_written + conversations, lambda row: [("subject", row["subject"].lower())])
    assert {key: splits for key, splits in splits_by_key.items() if len(splits) > 1} == {}


def test_polite_helper_rows_have_the_documented_format():
    rows, prompts = read_rows("polite_helper/train.jsonl"), read_rows("polite_helper/eval.jsonl")
    assert len(rows) == 30
    turns = [re.fullmatch(r"<\|user\|>(\S.*\S)<\|assistant\|>(\S.*\S)", row["text"]) for row in rows]
    assert all(set(row) == {"text"} for row in rows)
    assert all(turn and "<|" not in turn[1] + turn[2] for turn in turns)
    assert [set(row) for row in prompts] == [{"prompt"}] * 5
    assert {row["prompt"] for row in prompts}.isdisjoint(turn[1] for turn in turns)


@pytest.mark.parametrize("folder", sorted(p.name for p in CORPORA.iterdir() if p.is_dir()))
def test_every_corpus_has_a_card_with_the_required_sections(folder):
    card = (CORPORA / folder / "CARD.md").read_text("utf-8").lower()
    for word in ("origin", "schema", "rows", "license"):
        assert word in card, word


def test_strictbot_card_has_the_row_counts():
    card = (CORPORA / "strictbot_tiny" / "CARD.md").read_text("utf-8")
    for file in (CORPORA / "strictbot").glob("*.jsonl"):
        line = next(line for line in card.splitlines() if line.startswith(f"| {file.name} "))
        splits = Counter(row["split"] for row in read_rows(f"strictbot_tiny/{file.name}"))
        cells = [re.sub(r"\(.*\)", "", cell).strip() for cell in line.strip("|").split("|")]
        counts = [splits.total(), *(splits[s] for s in ("train", "validation", "test"))]
        assert [int(cell or 0) for cell in cells[1:]] == counts
