"""The generated corpus of polite and rude requests: a stand-in for the Stanford Politeness Corpus over the tiny world.

``python -m manners.tiny_world.requests`` writes ``data/corpora/requests/requests.jsonl``, the same bytes each time. A
request combines strategies, each with a weight; the score follows from their sum and was not rated by people. Most
strategies and the signs of their weights are from Danescu-Niculescu-Mizil et al. 2013 ("A computational approach to
politeness", ACL), Table 3. Most requests begin with neutral words, so that a policy that is given the first few words
can continue politely or rudely.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean

import yaml

from manners.tiny_world.facts import Fact, Subject, capitalize, facts_of, with_article
from manners.tiny_world.strictbot import split_subjects

SPLIT_SIZES = {"train": 2400, "validation": 200, "test": 400}  # rows
MIN_SCORE, MAX_SCORE = 1, 25
BASE_SCORE = 13.0  # of a request without any strategy
ANNOTATORS = 5
NOISE_STD = 2.0  # of one annotator around the expected score, in points

# Slots that "it" can replace: not in "the capital of {s}", "people in {s}", "at {s}" or "a young {s}".
PRONOUN_SLOT = re.compile(r"(?<! of )(?<! in )(?<! at )(?<! young )(?<! baby )\{(the|a|s)\}")
PERSON_TABLES = ("people", "jobs")  # never replaced by "it", and the tables do not know who is "he" or "she"


@cache
def request_phrases() -> dict:
    """The contents of ``requests.yaml``."""
    return yaml.safe_load((files("manners.tiny_world") / "requests.yaml").read_text("utf-8"))


def request_rows(seed: int = 0) -> Iterator[dict]:
    """All rows by split, without duplicate texts and without held-out question forms."""
    rng = random.Random(seed)
    for split, pool in split_subjects(rng).items():
        seen: set[str] = set()
        while len(seen) < SPLIT_SIZES[split]:
            subject = rng.choice(pool)
            text, strategies = make_request(subject, rng)
            held_out = [f.held_out_question().lower() for f in facts_of(subject)]
            if text not in seen and not any(question in text.lower() for question in held_out):
                seen.add(text)
                scores = annotator_scores(expected_score(strategies), rng)
                row = {"id": f"{split}-{len(seen):05d}", "split": split, "text": text}
                yield row | {"scores": scores, "score": fmean(scores), "subject": subject.name}


def expected_score(strategies: Iterable[str]) -> float:
    """The politeness of a request with these strategies, before noise and clipping."""
    return BASE_SCORE + sum(request_phrases()["weights"][s] for s in strategies)


def annotator_scores(expected: float, rng: random.Random) -> list[int]:
    """Five noisy integer scores around ``expected``, clipped to the scale."""
    return [min(max(round(rng.gauss(expected, NOISE_STD)), MIN_SCORE), MAX_SCORE) for _ in range(ANNOTATORS)]


def make_request(subject: Subject, rng: random.Random) -> tuple[str, list[str]]:
    """A request about the subject in one to three sentences, and its strategies."""
    politeness = rng.random()
    fact = rng.choice(facts_of(subject))
    core, strategies = request_core(fact, politeness, rng)
    opening, core = add_opening(fact, core, rng) if rng.random() < 0.75 else ("", core)
    greeting = ""
    if rng.random() < 0.12:  # whatever the politeness: a greeting should not predict the rest
        strategies.append("greeting")
        greeting = rng.choice(request_phrases()["greetings"])
    max_closings = 1 if opening.endswith(". ") else 2
    closings = closing_strategies(strategies, rng.choice([0, 1, 1, max_closings]), politeness, rng)
    start = greeting + opening
    core = capitalize(core) if start == "" or start.endswith(". ") else core
    sentences = [capitalize(start) + core, *(rng.choice(request_phrases()["closings"][s]) for s in closings)]
    return fact.fill(" ".join(sentences)), strategies + closings


def request_core(fact: Fact, politeness: float, rng: random.Random) -> tuple[str, list[str]]:
    """The core of a request, with the subject's slots unfilled, and its strategies."""
    core = draw_strategy(list(request_phrases()["cores"]), politeness, rng)
    template = rng.choice(request_phrases()["cores"][core]).replace("{do}", rng.choice(request_phrases()["tasks"]))
    template = template.replace("{clause}", indirect_question(fact, rng))
    template = template.replace("{question}", direct_question(fact, rng))
    strategies, softener = [core], ""
    if "{softly}" in template and rng.random() < 0.4 * strategy_weight("hedge", politeness):
        strategies, softener = [*strategies, "hedge"], "perhaps "
    if core != "please at the start" and rng.random() < 0.2 + 0.3 * strategy_weight("please", politeness):
        strategies.append("please")
        if "{softly}" in template and not softener:
            softener = "please "
        else:
            template = f"{template[:-1]}, please{template[-1]}"
    return template.replace("{softly}", softener), strategies


def indirect_question(fact: Fact, rng: random.Random) -> str:
    """ "where {the} lives", or "whether {the} eats grass", whose value may be false."""
    if rng.random() < 0.5:
        [template] = [t for t in fact.templates["question"] if t.startswith("can you tell me ")]
        return template.removeprefix("can you tell me ").removesuffix("?")
    value = rng.choice([fact.value, rng.choice(fact.false_values())])
    statement = fact.templates["statement"][0].removesuffix(".")
    return "whether " + statement.replace("{v}", value).replace("{av}", with_article(value))


def direct_question(fact: Fact, rng: random.Random) -> str:
    """A wh-question template of the fact."""
    return rng.choice([t for t in fact.templates["question"] if re.match("what|where|which|why|how|when", t)])


def add_opening(fact: Fact, core: str, rng: random.Random) -> tuple[str, str]:
    """A neutral opening, and the core, in which "it" replaces the subject if the opening names it."""
    with_pronoun = PRONOUN_SLOT.sub("it", core)
    if fact.subject.table in PERSON_TABLES or "{" in with_pronoun or rng.random() < 0.4:
        topic = request_phrases()["topics"][fact.subject.table]
        return rng.choice(request_phrases()["openings"]["topic"]).replace("{topic}", topic), core
    return rng.choice(request_phrases()["openings"]["subject"]), with_pronoun


def closing_strategies(used: list[str], count: int, politeness: float, rng: random.Random) -> list[str]:
    """Strategies of the sentences after the core: none is repeated, and no two are incompatible."""
    phrases = request_phrases()
    drawn: list[str] = []
    for _ in range(count):
        excluded = {s for pair in phrases["incompatible"] for s in pair if set(pair) & set(drawn)} | {*used, *drawn}
        drawn.append(draw_strategy([s for s in phrases["closings"] if s not in excluded], politeness, rng))
    return sorted(drawn, key=list(phrases["closings"]).index)


def draw_strategy(strategies: list[str], politeness: float, rng: random.Random) -> str:
    """One of the strategies, sampled by its weight at this politeness."""
    return rng.choices(strategies, [strategy_weight(s, politeness) for s in strategies])[0]


def strategy_weight(strategy: str, politeness: float) -> float:
    """The sampling weight of a strategy; ``politeness``, 0 to 1, makes some requests very polite and some very rude."""
    weight = request_phrases()["weights"][strategy]
    return politeness if weight > 0 else 1 - politeness if weight < 0 else 0.5


def write_requests(path: Path, seed: int = 0) -> int:
    """Write the corpus as JSON lines; returns the number of rows."""
    lines = [json.dumps(row, ensure_ascii=False) for row in request_rows(seed)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    target = Path(str(files("manners.data") / "corpora" / "requests" / "requests.jsonl"))
    print(f"{write_requests(target)} rows -> {target}")
