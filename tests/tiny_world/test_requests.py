"""The packaged requests: generated reproducibly, scored by what the text shows, with beginnings that reveal little."""

import json
import random
import re
from collections import Counter, defaultdict
from statistics import fmean, pstdev, quantiles

import numpy as np
import pytest
import yaml

from manners.data.sources import CORPORA, local_path
from manners.runtime.paths import CONF
from manners.tiny_world import requests
from manners.tiny_world.facts import facts, subjects

FILE = CORPORA / "requests" / "requests.jsonl"

# Each strategy as a reader would recognize it, independently of the generator, and its weight.
PATTERNS = {
    "counterfactual modal": (r"\b([Cc]ould|[Ww]ould) you\b", 3.0),
    "wish": (r"\bI would like\b", 1.0),
    "indicative modal": (r"\b([Cc]an|[Ww]ill) you\b", 0.5),
    "please at the start": (r"(^|[.:] |^Hello, |^Good morning, |^Hi there, )[Pp]lease\b", -1.0),
    "direct question": (r"(^|[.:,] )([Ww]hat|[Ww]here|[Ww]hich|[Ww]hy|[Hh]ow(?! often must)|[Ww]hen)\b.*\?", -1.5),
    "imperative": (r"(^|[.:,] )([Tt]ell me|[Hh]elp me find out|[Ww]rite down)\b", -3.0),
    "demand": (r"\b[Yy]ou (must|have to)\b", -4.0),
    "please": (r"\byou (perhaps )?please\b|(?<!Hurry up), please[.?]", 2.0),
    "hedge": (r"\b([Pp]erhaps|I think that|Maybe)\b", 1.5),
    "greeting": (r"^(Hello|Good morning|Hi there),", 1.5),
    "gratitude": (r"\b(Thank you|I thank you|Thanks,)", 3.0),
    "deference": (r"\b(You know so much|You always|very good\b)", 2.5),
    "apology": (r"\b(I am sorry to ask|Sorry for|forgive)\b", 2.0),
    "factuality": (r"\b(In fact|[Rr]eally)\b", -1.5),
    "second person at the start": (r"\bYou (should|have not|need)\b", -2.5),
    "impatience": (r"\b([Hh]urry|cannot wait|How often must)\b", -3.0),
    "insult": (r"\b(You never|for nothing|A child could|no help|nonsense)\b", -4.5),
}


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]


def test_write_requests_reproduces_the_packaged_file(tmp_path):
    assert requests.write_requests(tmp_path / "again.jsonl") == 3000
    assert (tmp_path / "again.jsonl").read_bytes() == FILE.read_bytes()
    assert FILE.stat().st_size < 1_000_000


def test_request_rows_depend_on_the_seed(rows):
    assert next(requests.request_rows(seed=1)) != rows[0]


def test_rows_have_five_integer_scores_and_their_mean(rows):
    for row in rows:
        assert set(row) == {"id", "split", "text", "scores", "score", "subject"}
        assert len(row["scores"]) == 5
        assert all(type(score) is int and 1 <= score <= 25 for score in row["scores"])
        assert row["score"] == sum(row["scores"]) / 5
    assert Counter(row["split"] for row in rows) == {"train": 2400, "validation": 200, "test": 400}
    assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == len(rows)


def test_each_subject_is_in_one_split_and_few_are_in_none(rows):
    splits = defaultdict(set)
    for row in rows:
        splits[row["subject"]].add(row["split"])
        assert row["subject"] in row["text"]
    assert max(map(len, splits.values())) == 1
    assert set(splits) <= {s.name for s in subjects()}
    assert len(splits) > 0.95 * len(subjects())


@pytest.mark.parametrize(
    ("strategies", "score"),
    [
        ([], 13.0),
        (["counterfactual modal", "please", "gratitude"], 21.0),
        (["imperative", "impatience"], 7.0),
        (["please at the start"], 12.0),
        (["greeting", "demand", "please", "factuality", "insult"], 6.5),
    ],
)
def test_expected_score_adds_the_weights(strategies, score):
    assert requests.expected_score(strategies) == score


def test_annotator_scores_are_centred_and_clipped_to_the_scale():
    rng = random.Random(0)
    assert requests.annotator_scores(60.0, rng) == [25] * 5
    assert requests.annotator_scores(-40.0, rng) == [1] * 5
    sample = [score for _ in range(2000) for score in requests.annotator_scores(13.0, rng)]
    assert fmean(sample) == pytest.approx(13, abs=0.1)
    assert pstdev(sample) == pytest.approx((2**2 + 1 / 12) ** 0.5, abs=0.05)  # 1/12: the variance of rounding


def test_regression_on_the_texts_recovers_the_weights(rows):
    """Each strategy is recognizable in the text, and nothing else affects the score."""
    features = np.array(
        [[bool(re.search(pattern, row["text"])) for pattern, _ in PATTERNS.values()] for row in rows], float
    )
    scores = np.array([row["score"] for row in rows])
    assert set(PATTERNS) | {"plain question"} == set(requests.request_phrases()["weights"])
    assert features.sum(axis=0).min() > 60
    design = np.column_stack([np.ones(len(rows)), features])
    weights = np.linalg.lstsq(design, scores, rcond=None)[0]
    assert weights == pytest.approx([13.0, *(weight for _, weight in PATTERNS.values())], abs=0.3)
    noise = (scores - design @ weights).std()
    assert noise == pytest.approx(((2**2 + 1 / 12) / 5) ** 0.5, abs=0.05)


def test_each_split_has_polite_and_rude_rows(rows):
    low, middle, high = quantiles([row["score"] for row in rows], n=4)
    assert low < 11 < 12 < middle < 14 < 15.5 < high
    for split in ("train", "validation", "test"):
        scores = [row["score"] for row in rows if row["split"] == split]
        assert sum(score >= 15 for score in scores) > 0.25 * len(scores)
        assert sum(score <= 11 for score in scores) > 0.25 * len(scores)


def explained_variance(rows, key):
    """R² on half of the rows, predicted by the other half's mean score of the same ``key``, shrunk by one mean row."""
    rows = random.Random(0).sample(rows, len(rows))
    train, test = rows[::2], rows[1::2]
    mean = fmean(row["score"] for row in train)
    groups = defaultdict(lambda: [mean])
    for row in train:
        groups[key(row)].append(row["score"])
    errors = [row["score"] - fmean(groups[key(row)]) for row in test]
    return 1 - fmean(e**2 for e in errors) / pstdev([row["score"] for row in test]) ** 2


def test_first_words_do_not_predict_the_score(rows):
    assert explained_variance(rows, lambda row: " ".join(row["text"].split()[:3])) < 0.2
    assert explained_variance(rows, lambda row: " ".join(row["text"].split()[:4])) < 0.2
    assert explained_variance(rows, lambda row: " ".join(row["text"].split()[-3:])) > 0.3  # the ending does


def test_most_rows_have_a_neutral_opening(rows):
    neutral = re.compile(
        r"(?i)((hello|good morning|hi there), )?"
        r"(about|this is about|a question about|my question is|my book is|the next question|today i read|"
        r"we are talking|i am reading|i have a question) "
    )
    assert sum(bool(neutral.match(row["text"])) for row in rows) > 0.7 * len(rows)


def test_no_single_word_determines_the_score(rows):
    """Rude requests contain "please", "sorry" and "thanks" too, and polite ones "you must"."""

    def scores_of(pattern):
        return [row["score"] for row in rows if re.search(pattern, row["text"])]

    please, sorry, thanks, must = map(scores_of, ("(?i)please", "(?i)sorry", "(?i)thank", "(?i)you must|you have to"))
    for scores in (please, sorry, thanks):
        assert sum(score < 11 for score in scores) > 0.05 * len(scores)
        assert sum(score > 15 for score in scores) > 0.3 * len(scores)
    assert sum(score > 13 for score in must) > 0.05 * len(must)


def test_texts_are_one_to_three_well_formed_sentences(rows):
    for row in rows:
        sentences = re.split(r"(?<=[.?]) ", row["text"])
        assert 1 <= len(sentences) <= 3, row["text"]
        assert all(re.fullmatch(r"[A-Z][^{}]*[^ ,:][.?]", s) for s in sentences), row["text"]
        assert "  " not in row["text"]


def test_texts_contain_no_held_out_question(rows):
    held_out = defaultdict(list)
    for fact in facts():
        held_out[fact.subject.name].append(fact.held_out_question().lower())
    assert not [row["text"] for row in rows if any(q in row["text"].lower() for q in held_out[row["subject"]])]


def test_strategies_are_unique_and_compatible():
    rng = random.Random(3)
    pairs = set()
    for _ in range(2000):
        text, strategies = requests.make_request(rng.choice(subjects()), rng)
        assert len(set(strategies)) == len(strategies), text
        pairs |= {frozenset((a, b)) for a in strategies for b in strategies}
    assert {frozenset(("insult", "gratitude")), frozenset(("insult", "deference"))}.isdisjoint(pairs)
    assert frozenset(("insult", "please")) in pairs


@pytest.mark.parametrize(
    ("template", "with_pronoun"),
    [
        ("tell me where {the} lives.", "tell me where it lives."),
        ("tell me what {a} is for.", "tell me what it is for."),
        ("what is the capital of {s}?", None),
        ("what is a young {s} called?", None),
        ("what do people in {s} speak?", None),
    ],
)
def test_add_opening_replaces_a_named_subject_with_it(template, with_pronoun):
    fact = next(f for f in facts() if f.subject.table == "animals")
    results = [requests.add_opening(fact, template, random.Random(seed)) for seed in range(50)]
    after_subject = {core for opening, core in results if "{the}" in opening}
    assert after_subject == ({with_pronoun} if with_pronoun else set())
    assert {core for opening, core in results if "{the}" not in opening} == {template}


@pytest.mark.parametrize("table", ["people", "jobs"])
def test_add_opening_never_calls_a_person_it(table):
    fact = next(f for f in facts() if f.subject.table == table)
    for seed in range(50):
        opening, core = requests.add_opening(fact, "tell me where {a} works.", random.Random(seed))
        assert "{the}" not in opening
        assert core == "tell me where {a} works."


def test_dataset_config_names_the_packaged_file():
    config = yaml.safe_load((CONF / "dataset" / "requests.yaml").read_text("utf-8"))
    assert local_path(config["path"]) == FILE
    assert config["format"] == "text"


def test_card_has_the_row_counts_and_the_weights(rows):
    card = (CORPORA / "requests" / "CARD.md").read_text("utf-8")
    splits = Counter(row["split"] for row in rows)
    counts = (len(rows), splits["train"], splits["validation"], splits["test"])
    assert "| requests.jsonl | {} | {} | {} | {} |".format(*counts) in card
    listed = {name: float(weight) for name, weight in re.findall(r"\| ([a-z ]+) \| .* \| ([-+]?\d\.\d) \|", card)}
    assert listed == requests.request_phrases()["weights"]
