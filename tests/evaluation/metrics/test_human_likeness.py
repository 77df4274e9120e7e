"""What is counted in a user's turn: by hand on small turns, and on sixty real OpenAssistant trees where at hand.

The real file is looked for in the folder MANNERS_DATA, by default shared/data beside the checkout.
"""

import json
import math
import os
import random
from pathlib import Path

import pytest

from manners.errors import MannersError
from manners.evaluation.metrics import human_likeness
from manners.evaluation.metrics.human_likeness import FEATURES, SIGNS, compare_with_people, turn_features

SAID_BY_AN_ASSISTANT = [
    "As an AI language model, I cannot feel.",
    "as an ai developed by OpenAI, i have no opinion",
    "I'm just a language model, so ask a doctor.",
    "I am an AI assistant and know nothing of it.",
    "I've been trained on a lot of text.",
    "I’d be happy to help you with that",
    "I'm here to help. Go on.",
    "What else can I do for you?",
    "Hello! How can I assist you today?",
    "You're very welcome!",
    "Is there anything else I can help you with?",
    "Paris. I hope this helps!",
    "Please let me know if you need more.",
    "Feel free to ask, and don't hesitate to write.",
    "I apologize for the confusion.",
    "Certainly! Paris is a city.",
    "  Of course, it is.",
    "Sure! Here is a poem about it.",
    "Sure thing, I can do that.",
    "Here are some tips",
    "Well, here’s a very short example of it:",
    "It's very important to drink water.",
    "Then consult with a medical professional.",
    "Steps:\n1. Boil water.\n2. Add tea.\n\n3. Wait.",
    "* red\n* green\n  * blue",
]
SAID_BY_A_USER = [
    "As an AI, what do you think of us?",
    "as an AI student i wonder how it works",
    "I am an AI researcher",
    "Are you a language model?",
    "Are you able to help me with my homework?",
    "Sure.",
    "sure, do that",
    "Yes, here it is:",
    "here is my code, why does it fail",
    "of course not",
    "Is it important to eat at noon?",
    "Which one:\n1. tea\n2. coffee",
    "I want to help my mother, how can I do that?",
    "thank you",
    "",
]


@pytest.mark.parametrize("text", SAID_BY_AN_ASSISTANT)
def test_a_user_who_speaks_like_an_assistant_breaks_the_role(text):
    assert turn_features(text)["role breaks"] == 1


@pytest.mark.parametrize("text", SAID_BY_A_USER)
def test_a_user_who_speaks_like_one_does_not(text):
    assert turn_features(text)["role breaks"] == 0


def signs(text):
    return [name for name in SIGNS if turn_features(text)[name]]


LOW, OPEN, ASKS, GREETS, THANKS = (
    "starts in lower case",
    "ends without a mark",
    "asks a question",
    "greets",
    "says please or thanks",
)


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("Why?", [ASKS]),
        ("how do i open it", [ASKS, LOW, OPEN]),
        ("It broke. Can it be mended?", [ASKS]),
        ("See /find?q=1.", []),
        ("Hey there, is it late?", [ASKS, GREETS]),
        ("They said hello.", []),
        ("hidden \n", [LOW, OPEN]),
        ("- 'tis all. Thanks!", [THANKS, LOW]),
        ("ça va. Pls", [THANKS, LOW, OPEN]),
        ("3 apples (red)", []),
        ("42", [OPEN]),
        (" ", []),
    ],
)
def test_what_a_turn_has_or_not(text, has):
    assert sorted(signs(text)) == sorted(has)


@pytest.mark.parametrize(
    ("text", "words", "sentences", "slips"),
    [
        ("I don't know. Do you?", 5, 2, 0),
        ("i dont know, do u?", 5, 1, 3),
        ("i think i've recieved it\n\nTeh end", 7, 2, 3),  # "recieve" is listed, and its past is not
        ("Thats definately 3.5 euros", 5, 1, 2),  # 3.5 is two words and no end
        ("for i in range(u): i.e. the U.S.", 10, 2, 0),
        ("...", 0, 1, 0),
        ("", 0, 1, 0),
    ],
)
def test_what_a_turn_has_much_of(text, words, sentences, slips):
    found = turn_features(text)
    assert found["words"] == words
    assert found["words a sentence"] == words / sentences
    assert found["misspelt words, share"] == slips / max(1, words)


def test_every_listed_spelling_is_found_and_stands_there_once():
    listed = human_likeness.SPELLINGS.split("|")
    assert len(listed) == len(set(listed)) > 100
    assert [
        word for word in listed if turn_features(f"So {word.capitalize()}, no")["misspelt words, share"] != 1 / 3
    ] == []


def lines(generated, people, seed=0):
    return {line.name: line for line in compare_with_people(generated, people, seed)}


def test_every_feature_has_a_line_and_the_variety_two():
    found = compare_with_people(["Why not?", "no"], ["why", "Yes, but why?"], seed=0)
    assert [line.name for line in found] == [*FEATURES, "distinct-1", "distinct-2"]


def test_the_distance_of_a_sign_is_the_difference_of_its_shares():
    found = lines(["Why?"] * 3 + ["No."], ["Why?"] + ["No."] * 4)[ASKS]
    assert (found.generated.value, found.human.value) == (0.75, 0.2)
    assert found.distance == pytest.approx(0.55)
    none = lines(["No."] * 10, ["No."] * 10)[ASKS]
    assert 0 < none.human.high == none.generated.high < 0.5  # none of ten is not surely none


def test_the_distance_of_an_amount_is_the_widest_gap_between_the_shares_up_to_it():
    # 1, 2, 3, 4 words against 3, 4, 5, 6, 7: up to two words are 2/4 of the turns and 0/5, up to four 4/4 and 2/5.
    turns = [" ".join("abcdefg"[:n]) + "." for n in range(8)]
    found = lines(turns[1:5], turns[3:8])["words"]
    assert (found.generated.value, found.human.value) == (2.5, 5.0)
    assert found.generated.low < 2.5 < found.generated.high
    assert found.distance == pytest.approx(0.6)


def test_distinct_counts_runs_of_words_within_turns():
    # 16 words against 8, so 4 are drawn of each: of "a b a b" two differ, of eight different ones all four.
    # 8 pairs (all "a b", since none goes from turn to turn) against 7, so 3 are drawn: 1/3, and again all.
    found = lines(["a B", "A b"] * 4, ["a b c d e f g h"])
    one, two = found["distinct-1"], found["distinct-2"]
    assert (one.generated.value, one.human.value, one.distance) == (0.5, 1.0, 0.5)
    assert two.generated.value == two.generated.high == 1 / 3
    assert (two.human.value, two.distance) == (1.0, pytest.approx(2 / 3))


def naive(turns):
    said = " ".join(turns).split()
    return len(set(said)) / len(said)


def test_variety_is_the_same_however_many_turns_were_made():
    rng = random.Random(0)
    few, many = (
        [" ".join(f"w{int(rng.paretovariate(0.4))}" for _ in range(rng.randint(3, 12))) for _ in range(n)]
        for n in (150, 1500)
    )
    found = human_likeness.distinct_n(few, many, 1, seed=0)
    assert naive(few) - naive(many) > 0.1
    assert found.distance < 0.03
    assert found.generated.low < found.human.value < found.generated.high
    assert human_likeness.distinct_n(many, few, 1, seed=0).human == found.generated


def test_the_interval_of_the_variety_is_as_wide_as_samples_of_such_turns_differ():
    rng = random.Random(1)
    values, widths = [], []
    for seed in range(40):
        turns = [" ".join(f"w{int(rng.paretovariate(0.4))}" for _ in range(5)) for _ in range(60)]
        found = human_likeness.distinct_n(turns, turns, 1, seed).generated
        values.append(found.value)
        widths.append(found.high - found.low)
    middle = sorted(values)[1:-1]  # 95 of 100
    assert 0.6 < (sum(widths) / 40) / (middle[-1] - middle[0]) < 1.6


def test_turns_too_short_for_a_run_have_no_variety():
    found = lines(["no"] * 4, ["yes"] * 4)
    assert found["distinct-1"].generated.value == 0.5  # two of the four are drawn, and are the same
    assert math.isnan(found["distinct-2"].human.value) and math.isnan(found["distinct-2"].distance)


def test_the_same_seed_gives_the_same_lines():
    turns = ["one two three", "two", "three four", "five six seven eight"], ["one two", "nine", "ten two one"]
    assert (
        compare_with_people(*turns, seed=3)
        == compare_with_people(*turns, seed=3)
        != compare_with_people(*turns, seed=4)
    )


@pytest.mark.parametrize(("generated", "people"), [([], ["a"]), (["a"], [])])
def test_nothing_is_compared_with_nothing(generated, people):
    with pytest.raises(MannersError, match=r"generated turns to compare with .* dataset\.test_share"):
        compare_with_people(generated, people, seed=0)


# --- The real file ---


@pytest.fixture(scope="module")
def said():
    """(even line or odd, role) → texts, without those of a model. The rules were written on the even lines alone."""
    shared = Path(os.environ.get("MANNERS_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
    path = shared / "oasst_trees_60.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    found = {(odd, role): [] for odd in (0, 1) for role in ("prompter", "assistant")}
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        todo = [json.loads(line)["prompt"]]
        for message in todo:
            todo += message["replies"]
            if not message["synthetic"]:
                found[number % 2, message["role"]].append(message["text"])
    return found


def test_role_breaks_are_in_what_real_assistants_say_and_hardly_in_what_real_users_say(said):
    """Measured: 98 of 203 and 0 of 137 where the rules were written, 75 of 186 and 2 of 141 in the other half."""
    flagged = {key: sum(map(FEATURES["role breaks"], texts)) / len(texts) for key, texts in said.items()}
    assert flagged[0, "assistant"] > 0.4 and flagged[1, "assistant"] > 0.33
    assert flagged[0, "prompter"] < 0.02 and flagged[1, "prompter"] < 0.04


def test_real_users_differ_from_real_assistants_as_one_would_expect(said):
    users = said[0, "prompter"] + said[1, "prompter"]
    found = lines(said[0, "assistant"] + said[1, "assistant"], users)
    more, less = [ASKS, LOW, OPEN, THANKS, "misspelt words, share"], ["role breaks", "words", "words a sentence"]
    assert [name for name in more if found[name].human.low < found[name].generated.value] == []
    assert [name for name in less if found[name].human.high > found[name].generated.value] == []
    same = lines(users[::2], users[1::2])
    assert max(line.distance for line in same.values()) < 0.2
