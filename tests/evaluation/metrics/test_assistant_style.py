"""Text statistics of replies: by hand, and against human ratings of politeness.

The Stanford Politeness Corpus is read from the folder MANNERS_DATA, by default shared/data next to the checkout.
"""

import math
import os
import random
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import pytest
from scipy.stats import spearmanr

from manners.data.ngrams import distinct_2
from manners.errors import MannersError
from manners.evaluation.metrics import assistant_style
from manners.evaluation.metrics.assistant_style import (
    FEATURES,
    STRATEGIES,
    UNITS,
    distinct_2_estimate,
    politeness,
    style_features,
    style_stats,
)
from manners.evaluation.stats import proportion
from tests.data.files import read

# feature → texts that have it, and similar texts that do not
EXAMPLES = {
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


@pytest.mark.parametrize("name", EXAMPLES)
def test_binary_feature_of_positive_and_similar_texts(name):
    positive, negative = EXAMPLES[name]
    assert {text: FEATURES[name](text) for text in positive} == dict.fromkeys(positive, 1.0)
    assert {text: FEATURES[name](text) for text in negative} == dict.fromkeys(negative, 0.0)


def test_every_binary_feature_has_examples():
    not_binary = {*UNITS, "questions", "repeated 4grams"}
    assert FEATURES.keys() - not_binary == EXAMPLES.keys()
    assert set(assistant_style.CORE_FEATURES) <= FEATURES.keys()


@pytest.mark.parametrize(
    "name", [name for name, (positive, _) in EXAMPLES.items() if any("'" in text for text in positive)]
)
def test_features_accept_typographic_apostrophes(name):
    for text in EXAMPLES[name][0]:
        assert FEATURES[name](text.replace("'", "’")) == 1.0


def test_politeness_is_polite_minus_impolite_strategies():
    # gratitude, please within a sentence, could you; "you" has sign 0
    assert politeness("Could you please look? Thanks. Thank you!") == 3
    # direct start, direct imperative, 2nd person start, direct question; "we" has sign 0
    assert politeness("So we wait. Stop it. You know why. Why?") == -4
    assert politeness("Please stop, I'm sorry.") == 0  # an apology, a please at the start
    assert politeness("The heron eats fish.") == 0


def test_split_sentences_at_end_marks_and_line_breaks():
    assert assistant_style.split_sentences('One. "Two?" Three!\n- four\n\n1. five 3.5 six… 😀 !') == (
        "One.", '"Two?', "Three!", "- four", "five 3.5 six…"
    )  # fmt: skip
    assert assistant_style.split_sentences("私は猫。あなたは？") == ("私は猫。", "あなたは？")


def test_questions_are_a_fraction_of_the_sentences():
    assert FEATURES["questions"]("Why? It rains. (Who knows?) 😀 Right?!") == 0.75
    assert FEATURES["questions"]("I ask why.") == 0
    assert FEATURES["questions"]("Pourquoi ? Il pleut.") == 0.5


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("cat", 1), ("the", 1), ("table", 2), ("whale", 1), ("makes", 1), ("boxes", 2), ("wanted", 2), ("jumped", 1),
        ("reading", 2), ("beautiful", 3), ("why", 1), ("agreed", 2), ("café", 2), ("psst", 1), ("42", 1), ("don't", 1),
        ("well-known", 2), ("needed", 2), ("free", 1), ("animal", 3),
    ],
)  # fmt: skip
def test_count_syllables(word, count):
    assert assistant_style.count_syllables(word) == count


def test_reading_ease_is_the_flesch_score():
    # one sentence of 6 words, of one syllable each
    assert FEATURES["reading ease"]("The cat sat on the mat.") == pytest.approx(206.835 - 1.015 * 6 - 84.6)
    # 3 and 2 words; an-i-mal, beau-ti-ful
    assert FEATURES["reading ease"]("The animal sat. Beautiful cat!") == pytest.approx(
        206.835 - 1.015 * 5 / 2 - 84.6 * 9 / 5
    )
    assert FEATURES["reading ease"]("42") == pytest.approx(206.835 - 1.015 - 84.6)  # one word, no sentence


@pytest.mark.parametrize("text", ["", " \n", "😀 !?", "…"])
def test_style_features_of_a_reply_without_words_are_zero(text):
    features = style_features(text)
    assert math.isnan(features.pop("reading ease"))
    assert set(features.values()) == {0.0}


def test_style_features_of_other_languages():
    french = style_features("Bonjour, pouvez-vous m’aider ? Merci beaucoup.")
    assert (french["words"], french["questions"], french["politeness"]) == (5, 0.5, 0)
    assert style_features("你好。我是谁？")["questions"] == 0.5
    assert style_features("Привет, как дела?")["words"] == 3


def test_style_stats_is_the_mean_of_each_feature():
    replies = ["Thanks. Why?", "", "It rains, it rains.", "Stop it now."]
    stats = style_stats(replies)
    assert stats.keys() == FEATURES.keys() | {"distinct-2"}
    assert stats["gratitude"].value == 1 / 4
    assert stats["questions"].value == 1 / 8  # half of the first
    assert stats["politeness"].value == (0 + 0 + 0 - 1) / 4  # gratitude - direct question; direct imperative
    assert stats["words"].value == (2 + 0 + 4 + 3) / 4
    # over the three with words, of one syllable each; 1, 4 and 3 words per sentence
    assert stats["reading ease"].value == pytest.approx(206.835 - 84.6 - 1.015 * (1 + 4 + 3) / 3)
    # "thanks why", "it rains" twice, "rains it", "stop it", "it now"
    assert stats["distinct-2"].value == pytest.approx(5 / 6)
    assert all(e.low <= e.value <= e.high for e in stats.values())


def test_style_stats_interval_is_that_of_a_mean():
    lengths = np.random.default_rng(1).poisson(20, size=400) + 1
    replies = ["word " * n for n in lengths]
    words = style_stats(replies, seed=3)["words"]
    assert words == style_stats(replies, seed=3)["words"]
    half_width = 1.96 * lengths.std(ddof=1) / 20
    assert words.value == pytest.approx(lengths.mean())
    assert words.low == pytest.approx(lengths.mean() - half_width, abs=0.15 * half_width)
    assert words.high == pytest.approx(lengths.mean() + half_width, abs=0.15 * half_width)


def test_style_stats_of_0_or_1_have_wilsons_interval():
    stats = style_stats(["Thanks."] * 20)
    assert stats["gratitude"] == proportion(20, 20)
    assert stats["apology"] == proportion(0, 20)
    assert (stats["words"].low, stats["words"].high) == (1, 1)


def test_style_stats_without_replies_or_words():
    with pytest.raises(MannersError, match=r"evaluation\.test_prompts"):
        style_stats([])
    stats = style_stats(["", ""])
    assert stats.keys() == FEATURES.keys() - {"reading ease"}  # all nan; and no distinct-2 without bigrams


def test_distinct_2_estimate_has_the_jackknife_interval():
    replies = ["a b c a b", "a b d", "", "c a e f"]
    value = distinct_2(replies)  # ab, bc, ca, bd, ae, ef of 9
    left_out = [distinct_2(replies[:i] + replies[i + 1 :]) for i in range(4)]
    half_width = 1.96 * (3 / 4 * sum((v - fmean(left_out)) ** 2 for v in left_out)) ** 0.5
    stats = distinct_2_estimate(replies)
    assert stats.value == value == 6 / 9
    assert (stats.low, stats.high) == pytest.approx((value - half_width, min(1, value + half_width)))
    single = distinct_2_estimate(["a b a b", "a"])
    assert (single.low, single.value, single.high) == (2 / 3, 2 / 3, 2 / 3)
    assert distinct_2_estimate(["a", ""]) is None


def test_distinct_2_estimate_covers_other_samples_of_equal_size():
    """A bootstrap interval would not: a third of the replies drawn with replacement are duplicates."""
    rng = random.Random(1)
    vocabulary, frequencies = [str(n) for n in range(1, 200)], [1 / n for n in range(1, 200)]

    def sample():
        return [" ".join(rng.choices(vocabulary, frequencies, k=rng.randint(2, 12))) for _ in range(40)]

    stats = [distinct_2_estimate(sample()) for _ in range(200)]
    mean = fmean(e.value for e in stats)
    assert 0.9 <= fmean(e.low <= mean <= e.high for e in stats) <= 0.99
    replies = sample()
    bootstrap = [distinct_2_estimate(rng.choices(replies, k=40)).value for _ in range(50)]
    assert max(bootstrap) < distinct_2_estimate(replies).low


# --- The Stanford Politeness Corpus ---

SHARED = Path(os.environ.get("MANNERS_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


@pytest.fixture(scope="module")
def ratings():
    """Each Wikipedia request with the standardized mean of its annotators."""
    path = SHARED / "stanford_politeness_wikipedia.annotated.csv"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    chats = read(path, sample_types=["scored"]).train
    scores = [chat.metadata["score"] for chat in chats]
    mean, std = fmean(scores), pstdev(scores)
    return [(chat.messages[0]["content"], (score - mean) / std) for chat, score in zip(chats, scores, strict=True)]


def test_politeness_correlates_with_human_ratings(ratings):
    counts = [politeness(text) for text, _ in ratings]
    assert spearmanr(counts, [score for _, score in ratings]).statistic > 0.35


# Strategies with a positive score in the paper's Table 3. The others are negative; the imperative is an addition.
POSITIVE = {
    "please", "gratitude", "apology", "deference", "greeting", "hedges", "by the way", "could or would you",
    "can or will you", "1st person plural", "1st person", "1st person start", "2nd person",
}  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_has_the_sign_of_the_paper(ratings, name):
    scores = [score for text, score in ratings if FEATURES[name](text)]
    assert len(scores) >= 20
    assert (fmean(scores) > 0) == (name in POSITIVE)
    assert (name in POSITIVE) == (STRATEGIES[name][0] >= 0)
