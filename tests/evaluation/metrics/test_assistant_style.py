"""What is counted about the manner of replies: against counts by hand, and against people's judgement of politeness.

The Stanford Politeness Corpus is looked for in the folder MANNERS_DATA, by default shared/data beside the checkout.
"""

import math
import os
import random
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import pytest
from scipy.stats import spearmanr

from manners.errors import MannersError
from manners.evaluation.metrics import assistant_style
from manners.evaluation.metrics.assistant_style import (
    FEATURES,
    STRATEGIES,
    UNITS,
    distinct_2,
    politeness,
    style_features,
    style_stats,
)
from manners.evaluation.stats import proportion
from tests.data.files import read

# feature → texts that have it, and texts that nearly do
HAS = {
    "please": (
        ["Could you please say more?", "Say more, please.", "Sit down, pls"],
        ["Please say more.", "She was pleased.", "It is pleasing."],
    ),
    "gratitude": (
        ["Thanks!", "Thank you.", "I really appreciate it.", "It would be appreciated.", "Thx", "I'm grateful"],
        ["We ate turkey on Thanksgiving.", "A thankless job.", "The house appreciated in value.", "An ungrateful son."],
    ),
    "apology": (
        ["Sorry to bother you.", "I apologise.", "My apologies", "Excuse me, is it here?", "Oops!", "I'm afraid not."],
        ["He was in a sorry state.", "I'm afraid of spiders.", "That is no excuse.", "The troop left."],
    ),
    "deference": (
        ["Nice work so far.", "Great question!", "That's a good point.", "Well done.", "Wow, what an excellent idea!"],
        ["The weather is nice.", "Great Britain is an island.", "It is a good idea to wait.", "Good for them."],
    ),
    "greeting": (
        ["Hey, I just tried it.", "Hello!", "Good morning to all.", "Yes. Hi there."],
        ["High time.", "Hi-fi sets are dear.", "They said hello.", "Good mornings are rare."],
    ),
    "hedges": (
        ["Perhaps.", "I think so.", "It seems fine.", "It may be.", "I'm not quite sure.", "I was wondering."],
        ["It rains in May.", "The mayor rains.", "A seamless coat.", "Think!", "It is the mightiest."],
    ),
    "by the way": (
        ["By the way, where is it?", "btw it is here", "Incidentally, no."],
        ["They fell by the wayside.", "By the side of the way.", "An incident."],
    ),
    "could or would you": (
        ["Could you look?", "And would you help?"],
        ["You could look.", "I would, you know.", "Could your cat look?", "Can you look?"],
    ),
    "can or will you": (["Can you look?", "When will you go?"], ["You can look.", "Could you look?", "Can your cat?"]),
    "1st person plural": (
        ["We eat.", "It helps us.", "Let's go.", "All on our own."],
        ["The US is large.", "A wet day.", "Bus hours."],
    ),
    "1st person": (["So I said.", "It's in my view.", "and i agree"], ["I said.", "My view.", "Mining, i.e. work."]),
    "1st person start": (["I said.", "“My” word", "Yes. I'm here."], ["It is I.", "i.e. this", "Mystery.", "In it."]),
    "2nd person": (["Are you there?", "It is your cat."], ["You are there.", "A youth.", "Bayou."]),
    "2nd person start": (["You are wrong.", "No. Your cat ran.", "you've erred"], ["Are you wrong?", "Young cats."]),
    "please at the start": (["Please stop.", "No. Please stop."], ["Stop, please.", "Pleased to stop.", "Pleas."]),
    "direct question": (
        ["What is it?", "Yes. Why?", "Who's there?"],
        ["When it rains, I sleep.", "Is it what?", "Whatever?", "What a day! Right?"],
    ),
    "direct start": (
        ["So can you do it?", "Fine. But why?", "And then", "“Or not.”"],
        ["So-called friends.", "Oregon is far.", "It is so.", "Sober men."],
    ),
    "factuality": (
        ["In fact, it is.", "It is really hard.", "You actually did.", "The point is that it rains."],
        ["In factories.", "A real one.", "Make the point.", "An actual case."],
    ),
    "direct imperative": (
        ["Look it up.", "1. Open the box.", "Then wait.", "Don't touch it.", "Yes. Now, go away!"],
        ["Please look it up.", "Help is near.", "Answer: 42", "Use of force.", "Looking good.", "They look."],
    ),
    "refusal": (
        ["I can't help with that.", "I cannot do it.", "I'm unable to say.", "As an AI, no.", "I am not able to.",
         "as a large language model"],
        ["I can't wait!", "I cannot thank you enough.", "You can't go.", "I was unable to swim.", "As an aide, yes."],
    ),
    "runs on as both speakers": (
        ["Fish.\nUser: And then?", "Fish. Human: Why?", "Yes.<|user|>No", "Yes.\n\n### Assistant: no", "User: hello"],
        ["Assistant: Fish.", "Ask the user: who is it?", "It has one user.", "Users: many"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HAS)
def test_a_feature_is_there_or_only_nearly(name):
    yes, nearly = HAS[name]
    assert {text: FEATURES[name](text) for text in yes} == dict.fromkeys(yes, 1.0)
    assert {text: FEATURES[name](text) for text in nearly} == dict.fromkeys(nearly, 0.0)


def test_every_feature_that_is_there_or_not_is_tried_above():
    counted = {*UNITS, "questions", "repetition"}
    assert FEATURES.keys() == HAS.keys() | counted
    assert set(assistant_style.SHORT) <= FEATURES.keys()
    assert not counted & HAS.keys()


@pytest.mark.parametrize("name", [name for name, (yes, _) in HAS.items() if any("'" in text for text in yes)])
def test_typographic_apostrophes_are_read_like_plain_ones(name):
    for text in HAS[name][0]:
        assert FEATURES[name](text.replace("'", "’")) == 1.0


def test_politeness_is_what_is_polite_minus_what_is_not():
    # gratitude, please in the sentence, could you; no vote for "you"
    assert politeness("Could you please look? Thanks. Thank you!") == 3
    # direct start, direct imperative, 2nd person start, direct question; no vote for "we"
    assert politeness("So we wait. Stop it. You know why. Why?") == -4
    assert politeness("Please stop, I'm sorry.") == 0  # an apology, a please at the start
    assert politeness("The heron eats fish.") == 0
    assert set(assistant_style.IMPOLITE) == {
        "2nd person start", "please at the start", "direct question", "direct start", "factuality", "direct imperative"
    }  # fmt: skip
    assert not set(assistant_style.POLITE) & set(assistant_style.IMPOLITE)


def test_sentences_end_at_marks_and_lines():
    assert assistant_style.split_sentences('One. "Two?" Three!\n- four\n\n1. five 3.5 six… 😀 !') == (
        "One.", '"Two?', "Three!", "- four", "five 3.5 six…"
    )  # fmt: skip
    assert assistant_style.split_sentences("私は猫。あなたは？") == ("私は猫。", "あなたは？")


def test_words_are_what_is_written_between_spaces_and_marks():
    assert assistant_style.split_words("Don’t—well-known Café, 42 😀 (x_y)!") == [
        "don't",
        "well-known",
        "café",
        "42",
        "x",
        "y",
    ]
    assert assistant_style.split_words("Cafe\u0301") == assistant_style.split_words("Café")


def test_questions_are_a_share_of_the_sentences():
    assert FEATURES["questions"]("Why? It rains. (Who knows?) 😀 Right?!") == 0.75
    assert FEATURES["questions"]("I ask why.") == 0
    assert FEATURES["questions"]("Pourquoi ? Il pleut.") == 0.5


def test_repetition_is_a_share_of_the_runs_of_four_words():
    # "a b c d a b c d": five runs, of which the last, a b c d, was there before
    assert FEATURES["repetition"]("A b c d. A b, c d!") == pytest.approx(1 / 5)
    assert FEATURES["repetition"]("no " * 10) == pytest.approx(6 / 7)
    assert FEATURES["repetition"]("a b c a b c") == 0  # three runs, all different
    assert FEATURES["repetition"]("no no no") == 0


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("cat", 1), ("the", 1), ("table", 2), ("whale", 1), ("makes", 1), ("boxes", 2), ("wanted", 2), ("jumped", 1),
        ("reading", 2), ("beautiful", 3), ("why", 1), ("agreed", 2), ("café", 2), ("psst", 1), ("42", 1), ("don't", 1),
        ("well-known", 2), ("needed", 2), ("free", 1), ("animal", 3),
    ],
)  # fmt: skip
def test_syllables(word, count):
    assert assistant_style.syllables(word) == count


def test_reading_ease_is_fleschs():
    # 6 words in a sentence, a syllable each
    assert FEATURES["reading ease"]("The cat sat on the mat.") == pytest.approx(206.835 - 1.015 * 6 - 84.6)
    # 3 and 2 words; an-i-mal, beau-ti-ful
    assert FEATURES["reading ease"]("The animal sat. Beautiful cat!") == pytest.approx(
        206.835 - 1.015 * 5 / 2 - 84.6 * 9 / 5
    )
    assert FEATURES["reading ease"]("42") == pytest.approx(206.835 - 1.015 - 84.6)  # a word, if no sentence


@pytest.mark.parametrize("text", ["", " \n", "😀 !?", "…"])
def test_an_empty_reply_has_nothing(text):
    found = style_features(text)
    assert math.isnan(found.pop("reading ease"))
    assert set(found.values()) == {0.0}


def test_another_language_is_counted_without_complaint():
    found = style_features("Bonjour, pouvez-vous m’aider ? Merci beaucoup.")
    assert (found["words"], found["questions"], found["politeness"]) == (5, 0.5, 0)
    assert style_features("你好。我是谁？")["questions"] == 0.5
    assert style_features("Привет, как дела?")["words"] == 3


def test_the_card_has_the_mean_of_each_feature():
    replies = ["Thanks. Why?", "", "It rains, it rains.", "Stop it now."]
    found = style_stats(replies)
    assert found.keys() == FEATURES.keys() | {"distinct-2"}
    assert found["gratitude"].value == 1 / 4
    assert found["questions"].value == 1 / 8  # of the first, half
    assert found["politeness"].value == (0 + 0 + 0 - 1) / 4  # gratitude - direct question; direct imperative
    assert found["words"].value == (2 + 0 + 4 + 3) / 4
    # over the three that have words; a syllable a word, and 1, 4 and 3 words a sentence
    assert found["reading ease"].value == pytest.approx(206.835 - 84.6 - 1.015 * (1 + 4 + 3) / 3)
    # "thanks why", "it rains" twice, "rains it", "stop it", "it now"
    assert found["distinct-2"].value == pytest.approx(5 / 6)
    assert all(e.low <= e.value <= e.high for e in found.values())


def test_the_cards_intervals_are_those_of_a_mean():
    lengths = np.random.default_rng(1).poisson(20, size=400) + 1
    replies = ["word " * n for n in lengths]
    found = style_stats(replies, seed=3)["words"]
    assert found == style_stats(replies, seed=3)["words"]
    reach = 1.96 * lengths.std(ddof=1) / 20
    assert found.value == pytest.approx(lengths.mean())
    assert found.low == pytest.approx(lengths.mean() - reach, abs=0.15 * reach)
    assert found.high == pytest.approx(lengths.mean() + reach, abs=0.15 * reach)


def test_what_all_or_none_have_is_not_held_for_certain():
    found = style_stats(["Thanks."] * 20)
    assert found["gratitude"] == proportion(20, 20)
    assert found["apology"] == proportion(0, 20)
    assert (found["words"].low, found["words"].high) == (1, 1)


def test_a_card_of_nothing():
    with pytest.raises(MannersError, match=r"evaluation\.test_prompts"):
        style_stats([])
    found = style_stats(["", ""])
    assert found.keys() == FEATURES.keys() - {"reading ease"}  # of which nobody has any, and no pair of words


def test_distinct_2_is_given_with_the_jackknifes_interval():
    replies = ["a b c a b", "a b d", "", "c a e f"]
    pairs = [list(pairwise(reply.split())) for reply in replies]

    def distinct(parts):
        every = [pair for part in parts for pair in part]
        return len(set(every)) / len(every)

    value = distinct(pairs)  # ab, bc, ca, bd, ae, ef of 9
    without = [distinct(pairs[:i] + pairs[i + 1 :]) for i in range(4)]
    reach = 1.96 * (3 / 4 * sum((w - fmean(without)) ** 2 for w in without)) ** 0.5
    found = distinct_2(replies)
    assert found.value == value == 6 / 9
    assert (found.low, found.high) == pytest.approx((value - reach, min(1, value + reach)))
    alone = distinct_2(["a b a b", "a"])
    assert (alone.low, alone.value, alone.high) == (2 / 3, 2 / 3, 2 / 3)
    assert distinct_2(["a", ""]) is None


def test_the_interval_of_distinct_2_covers_what_other_samples_of_that_size_give():
    """A bootstrap's would not: of replies drawn with replacement, a third are copies."""
    draw = random.Random(1)
    known, often = [str(n) for n in range(1, 200)], [1 / n for n in range(1, 200)]

    def sample():
        return [" ".join(draw.choices(known, often, k=draw.randint(2, 12))) for _ in range(40)]

    found = [distinct_2(sample()) for _ in range(200)]
    mean = fmean(e.value for e in found)
    assert 0.9 <= fmean(e.low <= mean <= e.high for e in found) <= 0.99
    some = sample()
    copies = [distinct_2(draw.choices(some, k=40)).value for _ in range(50)]
    assert max(copies) < distinct_2(some).low


# --- The real corpus ---

SHARED = Path(os.environ.get("MANNERS_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


@pytest.fixture(scope="module")
def judged():
    """Each request of Wikipedia with its annotators' mean, standardised."""
    path = SHARED / "stanford_politeness_wikipedia.annotated.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    chats = read(path, sample_types=["scored"]).train
    scores = [chat.metadata["score"] for chat in chats]
    mean, spread = fmean(scores), pstdev(scores)
    return [(chat.messages[0]["content"], (score - mean) / spread) for chat, score in zip(chats, scores, strict=True)]


def test_people_hear_the_politeness_that_is_counted(judged):
    counted = [politeness(text) for text, _ in judged]
    assert len(judged) == 4353
    assert spearmanr(counted, [score for _, score in judged]).statistic > 0.35


# The strategies whose score in the paper's Table 3 is above 0. The others' are below; the imperative is ours.
ABOVE = {
    "please", "gratitude", "apology", "deference", "greeting", "hedges", "by the way", "could or would you",
    "can or will you", "1st person plural", "1st person", "1st person start", "2nd person",
}  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_has_the_sign_that_the_paper_gives_it(judged, name):
    with_it = [score for text, score in judged if FEATURES[name](text)]
    assert len(with_it) >= 20
    assert (fmean(with_it) > 0) == (name in ABOVE)
    assert (name in ABOVE) == (STRATEGIES[name][0] >= 0)
