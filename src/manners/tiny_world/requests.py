"""The generated corpus of polite and rude requests: a stand-in for the Stanford Politeness Corpus over the small world.

``python -m manners.tiny_world.requests`` writes ``data/corpora/requests/requests.jsonl``, the same bytes each time. A
request combines strategies, each with a weight; the score follows from their sum, and no person has judged it. Most
strategies and the signs of their weights are from Danescu-Niculescu-Mizil et al. 2013 ("A computational approach to
politeness", ACL), Table 3. Most requests begin with neutral words, so that a policy which is given the first few can
go on either way.
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

from manners.tiny_world.facts import Fact, Subject, capitalise, facts_of, with_article
from manners.tiny_world.strictbot import bare, split_subjects

SIZES = {"train": 2400, "validation": 200, "test": 400}  # rows
LEAST, MOST = 1, 25  # the ends of the scale
NEUTRAL = 13.0  # the score of no strategy at all
ANNOTATORS = 5
NOISE = 2.0  # standard deviation of one annotator around the formula, in points

# Where "it" can stand for the subject: not in "the capital of {s}", "people in {s}", "at {s}" or "a young {s}".
REPLACEABLE = re.compile(r"(?<! of )(?<! in )(?<! at )(?<! young )(?<! baby )\{(the|a|s)\}")
PERSONS = ("people", "jobs")  # the tables do not know who is "he" and who is "she"


@cache
def request_words() -> dict:
    return yaml.safe_load((files("manners.tiny_world") / "requests.yaml").read_text("utf-8"))


def request_rows(seed: int = 0) -> Iterator[dict]:
    """All rows, split by split. None uses a question form that is kept for the exam, and no text comes twice."""
    rng = random.Random(seed)
    for split, pool in split_subjects(rng).items():
        seen: set[str] = set()
        while len(seen) < SIZES[split]:
            subject = rng.choice(pool)
            text, strategies = request(subject, rng)
            kept = [f.held_out_question().lower() for f in facts_of(subject)]
            if text not in seen and not any(question in text.lower() for question in kept):
                seen.add(text)
                scores = annotate(formula(strategies), rng)
                row = {"id": f"{split}-{len(seen):05d}", "split": split, "text": text}
                yield row | {"scores": scores, "score": fmean(scores), "subject": subject.name}


def formula(strategies: Iterable[str]) -> float:
    """How polite a request with these strategies is, before noise."""
    return NEUTRAL + sum(request_words()["weights"][s] for s in strategies)


def annotate(politeness: float, rng: random.Random) -> list[int]:
    """Five scores around ``politeness``, each a whole number on the scale."""
    return [min(max(round(rng.gauss(politeness, NOISE)), LEAST), MOST) for _ in range(ANNOTATORS)]


def request(subject: Subject, rng: random.Random) -> tuple[str, list[str]]:
    """A request about the subject, in one to three sentences, and the strategies in it."""
    warmth = rng.random()
    fact = rng.choice(facts_of(subject))
    core, strategies = request_core(fact, warmth, rng)
    opening, core = open_with(fact, core, rng) if rng.random() < 0.75 else ("", core)
    greeting = ""
    if rng.random() < 0.12:  # warm or not: a greeting should not give away what follows
        strategies.append("greeting")
        greeting = rng.choice(request_words()["greetings"])
    room = 1 if opening.endswith(". ") else 2
    said = after(strategies, rng.choice([0, 1, 1, room]), warmth, rng)
    start = greeting + opening
    core = capitalise(core) if start == "" or start.endswith(". ") else core
    sentences = [capitalise(start) + core, *(rng.choice(request_words()["after"][s]) for s in said)]
    return fact.clause(" ".join(sentences)), strategies + said


def request_core(fact: Fact, warmth: float, rng: random.Random) -> tuple[str, list[str]]:
    """The core of a request, the subject's slots still open, and the strategies in it."""
    core = draw_strategies(list(request_words()["cores"]), warmth, rng)
    form = rng.choice(request_words()["cores"][core]).replace("{do}", rng.choice(request_words()["tasks"]))
    form = form.replace("{clause}", clause(fact, rng)).replace("{question}", question_clause(fact, rng))
    strategies, softly = [core], ""
    if "{softly}" in form and rng.random() < 0.4 * lean("hedge", warmth):
        strategies, softly = [*strategies, "hedge"], "perhaps "
    if core != "please at the start" and rng.random() < 0.2 + 0.3 * lean("please", warmth):
        strategies.append("please")
        if "{softly}" in form and not softly:
            softly = "please "
        else:
            form = f"{form[:-1]}, please{form[-1]}"
    return form.replace("{softly}", softly), strategies


def clause(fact: Fact, rng: random.Random) -> str:
    """A thing to know: "where {the} lives", or "whether {the} eats grass", which may be false."""
    if rng.random() < 0.5:
        [form] = [f for f in fact.forms["asks"] if f.startswith("can you tell me ")]
        return form.removeprefix("can you tell me ").removesuffix("?")
    value = rng.choice([fact.value, rng.choice(fact.false_values())])
    return "whether " + bare(fact.forms["says"][0]).replace("{v}", value).replace("{av}", with_article(value))


def question_clause(fact: Fact, rng: random.Random) -> str:
    return rng.choice([f for f in fact.forms["asks"] if re.match("what|where|which|why|how|when", f)])


def open_with(fact: Fact, core: str, rng: random.Random) -> tuple[str, str]:
    """A neutral opening, and the core: it says "it" where the opening has named the subject."""
    short = REPLACEABLE.sub("it", core)
    if fact.subject.table in PERSONS or "{" in short or rng.random() < 0.4:
        topic = request_words()["topics"][fact.subject.table]
        return rng.choice(request_words()["openings"]["topic"]).replace("{topic}", topic), core
    return rng.choice(request_words()["openings"]["subject"]), short


def after(used: list[str], count: int, warmth: float, rng: random.Random) -> list[str]:
    """The strategies of the sentences after the core: none of those used, and none that clash."""
    said: list[str] = []
    for _ in range(count):
        clashing = {s for pair in request_words()["apart"] for s in pair if set(pair) & set(said)}
        said.append(
            draw_strategies([s for s in request_words()["after"] if s not in {*used, *said, *clashing}], warmth, rng)
        )
    return sorted(said, key=list(request_words()["after"]).index)


def draw_strategies(strategies: list[str], warmth: float, rng: random.Random) -> str:
    return rng.choices(strategies, [lean(s, warmth) for s in strategies])[0]


def lean(strategy: str, warmth: float) -> float:
    """How readily a request uses the strategy. ``warmth``, 0 to 1, lets some be very polite and some very rude."""
    weight = request_words()["weights"][strategy]
    return warmth if weight > 0 else 1 - warmth if weight < 0 else 0.5


def write_requests(path: Path, seed: int = 0) -> int:
    lines = [json.dumps(row, ensure_ascii=False) for row in request_rows(seed)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    target = Path(str(files("manners.data") / "corpora" / "requests" / "requests.jsonl"))
    print(f"{write_requests(target)} rows -> {target}")
