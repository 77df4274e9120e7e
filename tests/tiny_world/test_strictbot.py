"""The packaged corpora: the generated rows are what the generator writes, splits share no subject, claims are false."""

import json
import re
from collections import Counter, defaultdict
from itertools import islice

import pytest

from manners.data.sources import CORPORA
from manners.tiny_world import strictbot
from manners.tiny_world.facts import facts, subjects

MANNERS = {"good_question": "helpful", "poor_logic": "probing", "wrong_fact": "blunt"}


def read(name):
    return [json.loads(line) for line in (CORPORA / name).read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def generated():
    return read("strictbot/generated.jsonl")


@pytest.fixture(scope="module")
def singles(generated):
    return [row for row in generated if row["category"] != "multi_turn"]


@pytest.fixture(scope="module")
def hand():
    return read("strictbot/hand.jsonl")


def prompt(row):
    return row["messages"][0]["content"]


def splits_by(rows, keys):
    """The splits that each key comes in."""
    found = defaultdict(set)
    for row in rows:
        for key in keys(row):
            found[key].add(row["split"])
    return found


def names(phrase, text):
    return re.search(rf"(?i)(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def strip_period(sentence):
    return sentence.lower().removesuffix(".")


def test_the_shipped_file_is_what_the_generator_writes(tmp_path):
    count = strictbot.write_strictbot(tmp_path / "again.jsonl")
    assert count > 5000
    assert (tmp_path / "again.jsonl").read_bytes() == (CORPORA / "strictbot" / "generated.jsonl").read_bytes()


def test_another_seed_writes_other_rows(generated):
    assert list(islice(strictbot.strictbot_rows(seed=1), 50)) != generated[:50]


def test_ids_and_prompts_come_once(generated, hand):
    everything = generated + hand + read("strictbot/hand_turns.jsonl")
    assert len({row["id"] for row in everything}) == len(everything)
    asked = Counter(tuple(m["content"] for m in row["messages"] if m["role"] == "user") for row in everything)
    assert max(asked.values()) == 1


def test_no_subject_comes_in_two_splits_be_it_in_a_single_row_or_a_chat(generated):
    found = splits_by(generated, lambda row: row["subject"].split(", "))
    assert set(found) <= {s.name for s in subjects()}
    assert {name: splits for name, splits in found.items() if len(splits) > 1} == {}


def test_each_category_has_its_share_of_each_split(singles):
    for split in ("train", "validation", "test"):
        counts = Counter(row["category"] for row in singles if row["split"] == split)
        assert set(counts) == set(MANNERS)
        assert min(counts.values()) > 0.25 * sum(counts.values())


def test_wrong_claims_are_false_and_their_replies_name_the_true_value(singles):
    true, false = defaultdict(set), defaultdict(set)  # by subject: what can be said of it, rightly and wrongly
    for fact in facts():
        true[fact.subject.name].add(strip_period(fact.clause()))
        false[fact.subject.name] |= {(strip_period(fact.clause(wrong)), fact.value) for wrong in fact.false_values()}
    for row in singles:
        if row["category"] == "wrong_fact":
            said = prompt(row).lower()
            assert not any(names(truth, said) for truth in true[row["subject"]] if truth in said), said
            assert any(claim in said and value == row["value"] for claim, value in false[row["subject"]]), said
            assert names(row["value"], row["messages"][1]["content"])


def test_the_reply_to_a_question_names_the_value_asked_for(singles):
    asked = [row for row in singles if row["category"] == "good_question" and row["value"]]
    assert len(asked) > 1000
    assert all(names(row["value"], row["messages"][1]["content"]) for row in asked)


def test_no_prompt_uses_a_question_form_kept_for_the_exam(singles):
    held_out = {f.held_out_question().lower() for f in facts()}
    assert held_out.isdisjoint(prompt(row).lower() for row in singles)


def test_chats_have_two_to_four_turns_of_changing_category(generated):
    chats = [row for row in generated if row["category"] == "multi_turn"]
    assert len(chats) == len(generated) // 10
    for row in chats:
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * len(row["categories"])
    assert {len(row["categories"]) for row in chats} == {2, 3, 4}
    assert sum(len(set(row["categories"])) > 1 for row in chats) > 0.7 * len(chats)


def test_scores_fall_from_the_fitting_reply_over_a_wrong_tone_to_agreeing_with_a_mistake(singles, hand):
    """By hand: good content in a wrong tone 0.1 to 0.3, the right tone with a wrong fact 0.4, going along 0."""
    table = {
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
    met = set()
    for row in singles + hand:
        assert row["score"] == 1.0
        for other in row["mismatched"]:
            key = row["category"], other["manner"]
            assert other["score"] == table[key]
            assert other["content"] != row["messages"][-1]["content"]
            met.add(key)
    assert met == set(table)


def test_the_blunt_reply_that_scores_0_4_corrects_with_a_false_value(singles):
    told = defaultdict(list)
    for fact in facts():
        told[fact.subject.name].append(fact)
    for row in singles:
        if row["category"] == "wrong_fact":
            (blunt,) = [m["content"] for m in row["mismatched"] if m["manner"] == "blunt"]
            truths = [strip_period(f.clause()) for f in told[row["subject"]]]
            assert not any(names(truth, blunt) for truth in truths if truth in blunt.lower())


def test_a_verdict_put_as_a_question_is_the_verdict_with_another_mark(singles):
    """To a question as to a claim: PPO found that "You are mistaken?" pleased a reward model which had not seen it."""
    verdicts = {form.split("} ")[1] for form in strictbot.strictbot_phrases()["blunt"]["correct"]}
    for row in singles:
        (unsure,) = [m["content"] for m in row["mismatched"] if m["manner"] == "unsure"]
        assert any(unsure.endswith(verdict.removesuffix(".") + "?") for verdict in verdicts), unsure


def test_the_hand_written_rows_are_278_with_all_that_a_row_needs(hand):
    assert len(hand) == 278
    assert Counter(row["category"] for row in hand) == {"good_question": 93, "poor_logic": 93, "wrong_fact": 92}
    for row in hand:
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
        assert row["mismatched"]
        for other in row["mismatched"]:
            assert other["content"].strip()
            assert 0 <= other["score"] < row["score"] == 1
            assert other["manner"] != MANNERS[row["category"]]
    assert len({row["topic"] for row in hand}) >= 20


def test_no_prompt_and_no_subject_of_the_hand_written_rows_is_in_two_splits(hand):
    chats = read("strictbot/hand_turns.jsonl")
    both = splits_by(hand, lambda row: [("prompt", prompt(row).lower())])
    both |= splits_by(hand + chats, lambda row: [("subject", row["subject"].lower())])
    assert {key: splits for key, splits in both.items() if len(splits) > 1} == {}


def test_polite_helper_has_30_rows_of_the_exact_form_and_five_other_prompts():
    rows, asked = read("polite_helper/train.jsonl"), read("polite_helper/eval.jsonl")
    assert len(rows) == 30
    turns = [re.fullmatch(r"<\|user\|>(\S.*\S)<\|assistant\|>(\S.*\S)", row["text"]) for row in rows]
    assert all(set(row) == {"text"} for row in rows)
    assert all(turn and "<|" not in turn[1] + turn[2] for turn in turns)
    assert [set(row) for row in asked] == [{"prompt"}] * 5
    assert {row["prompt"] for row in asked}.isdisjoint(turn[1] for turn in turns)


@pytest.mark.parametrize("folder", sorted(p.name for p in CORPORA.iterdir() if p.is_dir()))
def test_each_corpus_has_a_card_with_origin_schema_counts_and_licence(folder):
    card = (CORPORA / folder / "CARD.md").read_text("utf-8").lower()
    for word in ("origin", "schema", "rows", "licence"):
        assert word in card, word


def test_the_card_of_strictbot_counts_its_rows_rightly():
    card = (CORPORA / "strictbot" / "CARD.md").read_text("utf-8")
    for file in (CORPORA / "strictbot").glob("*.jsonl"):
        line = next(line for line in card.splitlines() if line.startswith(f"| {file.name} "))
        splits = Counter(row["split"] for row in read(f"strictbot/{file.name}"))
        cells = [re.sub(r"\(.*\)", "", cell).strip() for cell in line.strip("|").split("|")]
        counts = [splits.total(), *(splits[s] for s in ("train", "validation", "test"))]
        assert [int(cell or 0) for cell in cells[1:]] == counts
