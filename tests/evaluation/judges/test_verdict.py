"""A verdict is a conjunction: gibberish, a wrong fact and a reply to another prompt do not fit."""

import csv
import json
from collections import defaultdict
from pathlib import Path

import pytest

from manners.data.readable import is_readable, is_relevant, unknown_words
from manners.data.sources import CORPORA
from manners.errors import MannersError
from manners.evaluation.judges import judge_reply, names_fact
from manners.evaluation.judges.__main__ import main
from manners.evaluation.stats import proportion

FALSEQA = Path(__file__).parents[4] / "shared" / "data" / "falseqa_valid.csv"


@pytest.fixture(scope="module")
def test_rows():
    rows = [json.loads(line) for line in (CORPORA / "strictbot" / "hand.jsonl").read_text("utf-8").splitlines()]
    return [row for row in rows if row["split"] == "test"]


def fitting(rows, reply=None):
    verdicts = [
        judge_reply(
            row["messages"][0]["content"], reply or row["messages"][1]["content"], row["category"], row.get("value")
        )
        for row in rows
    ]
    return sum(verdict.fits for verdict in verdicts) / len(rows)


@pytest.mark.parametrize(
    ("category", "reply"),
    [
        *(("good_question", text) for text in ("Asdf qwer.", "I hate you and your question.", "Cart heavy is.")),
        *(("poor_logic", text) for text in ("Asdf qwer?", "Why?", "Did I have to be cart heavy?")),
        *(("wrong_fact", text) for text in ("No.", "That is wrong.", "Asdf qwer.", "You are mistaken?")),
    ],
)
def test_one_reply_for_all_prompts_of_a_category_does_not_fit(test_rows, category, reply):
    rows = [row for row in test_rows if row["category"] == category]
    assert fitting(rows, reply) < 0.05
    others = [row for row in rows if row["messages"][1]["content"] != rows[0]["messages"][1]["content"]]
    if category != "good_question":  # a fluent answer to another question is beyond rules
        assert fitting(others, rows[0]["messages"][1]["content"]) < 0.25


@pytest.mark.parametrize("category", ["good_question", "poor_logic", "wrong_fact"])
def test_most_correct_replies_fit(test_rows, category):
    rows = [row for row in test_rows if row["category"] == category]
    assert fitting(rows) > 0.75


@pytest.mark.parametrize(
    ("category", "manner", "most"),
    [
        *(("poor_logic", "helpful", 0.05), ("poor_logic", "blunt", 0.05), ("good_question", "probing", 0.1)),
        *(("wrong_fact", "helpful", 0.05), ("wrong_fact", "probing", 0.05), ("wrong_fact", "blunt", 0.05)),
        ("wrong_fact", "mild", 0.4),
    ],
)
def test_few_replies_in_another_manner_fit(test_rows, category, manner, most):
    replies = [
        judge_reply(row["messages"][0]["content"], other["content"], category, row["value"]).fits
        for row in test_rows
        if row["category"] == category and (row.setdefault("value", None) or category != "wrong_fact")
        for other in row["mismatched"]
        if other["manner"] == manner
    ]
    assert len(replies) > 30 and sum(replies) / len(replies) < most


def test_share_of_each_kind_of_reply_that_fits_is_printed(test_rows, capsys):
    kinds = defaultdict(list)
    for row in test_rows:
        prompt, category, value = row["messages"][0]["content"], row["category"], row.get("value")
        kinds[category, "correct"].append(judge_reply(prompt, row["messages"][1]["content"], category, value).fits)
        for other in row["mismatched"]:
            kinds[category, other["manner"]].append(judge_reply(prompt, other["content"], category, value).fits)
    with capsys.disabled():
        print("\nreplies of strictbot's test rows that fit")
        for (category, manner), fits in sorted(kinds.items()):
            print(f"{category:>14} {manner:>8} {proportion(sum(fits), len(fits)).percent()} of {len(fits)}")
    assert len(kinds) == 16 and min(map(len, kinds.values())) > 40


@pytest.mark.skipif(not FALSEQA.exists(), reason="needs FalseQA (../shared/data), which is not in the repository")
def test_rules_tell_rebuttals_of_false_questions_from_answers(capsys):
    rows = list(csv.DictReader(FALSEQA.open(encoding="utf-8")))
    wrong = sum(
        (judge_reply(row["question"], row["answer"], "wrong_fact").style == "blunt") != (row["label"] == "1")
        for row in rows
    )
    with capsys.disabled():
        print(f"\nstyle judge on FalseQA valid: error {proportion(wrong, len(rows)).percent()}")
    assert wrong / len(rows) < 0.25


@pytest.mark.parametrize(
    ("prompt", "reply", "style"),
    [
        ("Why is the Earth flat?", "The Earth is not flat. Ships vanish hull first.", "blunt"),
        ("Why don't vaccines work?", "Vaccines do work. They wiped out smallpox.", "blunt"),
        ("When did Einstein fail maths?", "Einstein never failed maths.", "blunt"),
        ("Why does ice float?", "Because water does not shrink when it freezes.", "helpful"),
        ("Is a bat a bird?", "No, a bat is a mammal.", "helpful"),  # it may be asked
    ],
)
def test_question_may_take_something_false_for_granted(prompt, reply, style):
    assert judge_reply(prompt, reply, "wrong_fact").style == style
    assert judge_reply(prompt, reply, "good_question").style == "helpful"


def test_contrary_fact_alone_is_blunt_unless_it_is_put_softly():
    prompt, value = "Sydney is the capital of Australia.", ["Canberra"]
    assert judge_reply(prompt, "The capital of Australia is Canberra.", "wrong_fact", value).fits
    assert not judge_reply(prompt, "What a trip! Some might say the capital is Canberra.", "wrong_fact", value).fits
    assert not judge_reply(prompt, "No. The capital of Australia is Perth.", "wrong_fact", value).fits


def test_fact_is_a_word_or_one_of_several_beginnings():
    assert names_fact("It has 8 legs.", "8") and not names_fact("It has 80 legs.", "8")
    assert names_fact("Bacteria do.", ["virus", "bacteri"]) and not names_fact("Antibacterial", ["bacteri"])


@pytest.mark.parametrize(
    ("reply", "value", "found"),
    [
        *(
            ("42.5", "42", False),
            ("−273.15 °C", ["273.15"], True),
            ("1000", ["100"], False),
            ("11 moons", ["1"], False),
        ),
        *(("It was 1,500.", ["1500"], True), ("In 1945.", ["1945"], True), ("100, not 90", "100", True)),
    ],
)
def test_number_is_named_as_a_whole(reply, value, found):
    assert names_fact(reply, value) == found


def test_words_have_endings_and_names_and_prompts_lend_theirs():
    assert unknown_words("The cats' owners weren't unhappier, said Xylanther of Qoravia.") == []
    assert unknown_words("Did you look at more than one cune?") == ["cune"]
    assert unknown_words("A cune is round.", "What is a cune?") == []
    assert not is_readable("") and not is_readable("Glorb fnip the whizt.") and is_readable("It is a cune, I think.")


def test_cut_or_repeated_reply_has_a_manner_but_cannot_be_read():
    """That it does not fit is said once, by the part that it fails."""
    prompt = "How does a submarine dive?"
    for reply in (
        "A submarine dives by letting water into its tanks, and it rises as soon as the",
        "Water flows in and the boat sinks, water flows in and the boat sinks, water flows in and the boat sinks.",
    ):
        verdict = judge_reply(prompt, reply, "good_question")
        assert verdict.manner and not verdict.words and not verdict.fits, reply
    assert judge_reply(prompt, "It lets water into its tanks.", "good_question").fits


def test_reply_is_relevant_a_prompt_whose_words_it_takes_up():
    assert is_relevant("Which wheel remembers a spin?", "The wheels owe me a red.")
    assert not is_relevant("Who told you that?", "The wheels owe me a red.")


def test_command_prints_a_verdict_for_each_row(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    row = {"prompt": "Bats are birds.", "reply": "No. Bats are mammals.", "category": "wrong_fact", "value": ["mammal"]}
    file.write_text(json.dumps(row) + "\n")
    main([str(file), "judge=rules"])
    assert json.loads(capsys.readouterr().out) == {
        **{"fits": True, "style": "blunt", "reason": "contradicts the claim"},
        **{"manner": True, "fact": True, "words": True, "relevance": True},
    }
    file.write_text(json.dumps(row | {"category": "wrong_facts"}) + "\n")
    with pytest.raises(MannersError, match=r"rows.jsonl:1: category 'wrong_facts'. Did you mean 'wrong_fact'\?"):
        main([str(file)])
    for value in (5, [1, None], [""], {"a": 1}):
        file.write_text(json.dumps(row | {"value": value}) + "\n")
        with pytest.raises(MannersError, match=r"rows.jsonl:1: 'value' is a text, or a list of texts"):
            main([str(file)])
    file.write_text("oops\n")
    with pytest.raises(MannersError, match=r"rows.jsonl:1: not a JSON object"):
        main([str(file)])
    with pytest.raises(MannersError, match=r"judge=rule is not a choice. Did you mean 'rules'\?"):
        main([str(file), "judge=rule"])


@pytest.mark.parametrize(
    "reply",
    [
        "It is not Santiago, it is Lima.",
        "No, Santiago is not the capital of Chile.",
        "Wrong. It isn't Lima, and it isn't Santiago either.",
    ],
)
def test_fact_that_is_denied_is_not_named(reply):
    assert not names_fact(reply, "Santiago") and not names_fact(reply, ["Santiago"])
    assert names_fact("It is not Lima but Santiago.", "Santiago") and names_fact(
        "It isn't Lima, it's Santiago.", "Santiago"
    )


@pytest.mark.parametrize(
    ("fact", "reply"),
    [("São Paulo", "No, it is Sao Paulo."), ("Brasilia", "Brasi\u0301lia is the capital."), ("8", "It has eight legs."),
     ("eight", "It has 8."), ("mammal", "No, bats are mammals.")],
)  # fmt: skip
def test_spelling_of_a_fact_makes_no_difference(fact, reply):
    assert names_fact(reply, fact)


def test_short_correction_that_names_the_fact_is_relevant():
    assert judge_reply("The capital of Chile is Lima, right?", "No, it's Santiago.", "wrong_fact", "Santiago").fits


def test_no_answers_a_good_question_that_asks_for_yes_or_no():
    reply = "No. Mixing bleach and vinegar makes a poisonous gas, so never combine them."
    assert judge_reply("Is it safe to mix bleach and vinegar?", reply, "good_question").fits
    assert not judge_reply("How do I mix paint?", "No. Look it up.", "good_question").fits
