"""Text features of user turns: by hand, and on sixty OpenAssistant trees.

The trees are read from the folder MANNERS_DATA, by default shared/data next to the checkout.
"""

import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest

from manners.evaluation.metrics import human_likeness
from manners.evaluation.metrics.human_likeness import (
    BINARY_FEATURES,
    FEATURES,
    distances_from_people,
    distinct_n,
    mean_estimate,
    turn_features,
)
from manners.evaluation.stats import proportion

ASSISTANT_TURNS = [
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
USER_TURNS = [
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


@pytest.mark.parametrize("text", ASSISTANT_TURNS)
def test_role_breaks_match_assistant_phrases(text):
    assert turn_features(text)["role breaks"] == 1


@pytest.mark.parametrize("text", USER_TURNS)
def test_role_breaks_do_not_match_user_turns(text):
    assert turn_features(text)["role breaks"] == 0


LOWER, OPEN, ASKS, GREETS, THANKS = (
    "starts in lower case",
    "ends without punctuation",
    "asks a question",
    "greets",
    "says please or thanks",
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Why?", [ASKS]),
        ("how do i open it", [ASKS, LOWER, OPEN]),
        ("It broke. Can it be mended?", [ASKS]),
        ("See /find?q=1.", []),
        ("Hey there, is it late?", [ASKS, GREETS]),
        ("They said hello.", []),
        ("hidden \n", [LOWER, OPEN]),
        ("- 'tis all. Thanks!", [THANKS, LOWER]),
        ("ça va. Pls", [THANKS, LOWER, OPEN]),
        ("3 apples (red)", []),
        ("42", [OPEN]),
        (" ", []),
    ],
)
def test_binary_features(text, expected):
    features = turn_features(text)
    assert sorted(name for name in BINARY_FEATURES if features[name]) == sorted(expected)


@pytest.mark.parametrize(
    ("text", "words", "sentences", "misspelled"),
    [
        ("I don't know. Do you?", 5, 2, 0),
        ("i dont know, do u?", 5, 1, 3),
        ("i think i've recieved it\n\nTeh end", 7, 2, 3),  # "recieve" is listed, its past tense is not
        ("Thats definately 3.5 euros", 5, 1, 2),  # 3.5 is two words and does not end a sentence
        ("for i in range(u): i.e. the U.S.", 10, 2, 0),
        ("...", 0, 1, 0),
        ("", 0, 1, 0),
    ],
)
def test_numeric_features(text, words, sentences, misspelled):
    features = turn_features(text)
    assert features["words"] == words
    assert features["words per sentence"] == words / sentences
    assert features["misspelled words"] == misspelled / max(1, words)


def test_every_listed_misspelling_is_matched_once():
    words = human_likeness.SPELLINGS.split("|")
    fractions = {word: turn_features(f"So {word.capitalize()}, no")["misspelled words"] for word in words}
    assert len(words) == len(fractions)
    assert set(fractions.values()) == {1 / 3}


def test_distances_of_all_features_and_distinct_n():
    distances = distances_from_people(["Why not?", "no"], ["why", "Yes, but why?"], seed=0)
    assert list(distances) == [*FEATURES, "distinct-1", "distinct-2"]


def test_distance_of_a_binary_feature():
    distances = distances_from_people(["Why?"] * 3 + ["No."], ["Why?"] + ["No."] * 4, seed=0)
    assert distances[ASKS] == pytest.approx(0.75 - 0.2)


def test_mean_of_a_binary_feature_has_wilsons_interval():
    assert mean_estimate(np.zeros(10), ASKS, 0) == proportion(0, 10)
    assert mean_estimate(np.array([1.0, 4.0]), "words", 0).value == 2.5


def test_distance_of_a_numeric_feature_is_kolmogorov_smirnov():
    # 1, 2, 3, 4 words against 3, 4, 5, 6, 7: up to two words are 2/4 of the turns and 0/5, up to four 4/4 and 2/5.
    turns = [" ".join("abcdefg"[:n]) + "." for n in range(8)]
    assert distances_from_people(turns[1:5], turns[3:8], seed=0)["words"] == pytest.approx(0.6)


def test_distinct_n_counts_ngrams_within_turns():
    # 16 words against 8, so 4 of each are drawn: 2 of "a b a b" are different, and all 4 of the eight words.
    # 8 bigrams (all "a b", since none spans two turns) against 7, so 3 are drawn: 1/3, and again all different.
    sides = ["a B", "A b"] * 4, ["a b c d e f g h"]
    assert distinct_n(*sides, 1, seed=0) == (0.5, 1.0)
    assert distinct_n(*sides, 2, seed=0) == (1 / 3, 1.0)
    assert distances_from_people(*sides, seed=0)["distinct-2"] == pytest.approx(2 / 3)


def type_token_ratio(turns):
    words = " ".join(turns).split()
    return len(set(words)) / len(words)


def test_distinct_n_does_not_depend_on_the_number_of_turns():
    rng = random.Random(0)
    few, many = (
        [" ".join(f"w{int(rng.paretovariate(0.4))}" for _ in range(rng.randint(3, 12))) for _ in range(n)]
        for n in (150, 1500)
    )
    x, y = distinct_n(few, many, 1, seed=0)
    assert type_token_ratio(few) - type_token_ratio(many) > 0.1
    assert abs(x - y) < 0.03
    assert distinct_n(many, few, 1, seed=0) == (y, x)


def test_distinct_2_is_nan_without_bigrams():
    assert distinct_n(["no"] * 4, ["yes"] * 4, 1, seed=0) == (
        0.5,
        0.5,
    )  # two of four words are drawn
    assert math.isnan(distances_from_people(["no"] * 4, ["yes"] * 4, seed=0)["distinct-2"])


def test_distinct_n_is_deterministic_by_seed():
    rng = random.Random(2)
    turns = [" ".join(rng.choices("abcdefgh", k=rng.randint(1, 9))) for _ in range(40)]
    first, again, other = (distinct_n(turns, turns[::2], 2, seed) for seed in (3, 3, 4))
    assert first == again != other


# --- OpenAssistant ---


@pytest.fixture(scope="module")
def texts_by_half():
    """(line number modulo 2, role) → texts written by people. The rules were developed on the even lines."""
    shared = Path(os.environ.get("MANNERS_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
    path = shared / "oasst_trees_60.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    result = {(odd, role): [] for odd in (0, 1) for role in ("prompter", "assistant")}
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        queue = [json.loads(line)["prompt"]]
        for message in queue:
            queue += message["replies"]
            if not message["synthetic"]:
                result[number % 2, message["role"]].append(message["text"])
    return result


def test_role_breaks_match_assistants_and_hardly_ever_users(texts_by_half):
    """Measured: 98 of 203 and 0 of 137 in the half of development, 75 of 186 and 2 of 141 in the other half."""
    rates = {key: sum(map(FEATURES["role breaks"], texts)) / len(texts) for key, texts in texts_by_half.items()}
    assert rates[0, "assistant"] > 0.4 and rates[1, "assistant"] > 0.33
    assert rates[0, "prompter"] < 0.02 and rates[1, "prompter"] < 0.04


def test_features_separate_users_from_assistants(texts_by_half):
    users = texts_by_half[0, "prompter"] + texts_by_half[1, "prompter"]
    models = texts_by_half[0, "assistant"] + texts_by_half[1, "assistant"]
    result = {name: tuple(mean_of(name, texts) for texts in (models, users)) for name in FEATURES}
    higher = [ASKS, LOWER, OPEN, THANKS, "misspelled words"]
    lower = ["role breaks", "words", "words per sentence"]
    assert [name for name in higher if result[name][1].low < result[name][0].value] == []
    assert [name for name in lower if result[name][1].high > result[name][0].value] == []
    assert max(distances_from_people(users[::2], users[1::2], seed=0).values()) < 0.2


def mean_of(name, texts):
    return mean_estimate(np.array([FEATURES[name](text) for text in texts], float), name, 0)
