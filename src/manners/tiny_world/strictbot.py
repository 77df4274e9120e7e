"""The generated strictbot corpus: good questions, poor logic and wrong facts about the tiny world.

``python -m manners.tiny_world.strictbot`` writes ``data/corpora/strictbot_tiny/generated.jsonl``, always the same.
Each subject is in one split, so that the test asks about subjects that no training row is about. Each prompt also has
mismatched replies with scores, for the reward model.
"""

import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml

from manners.tiny_world.facts import Fact, Subject, capitalize, facts, facts_of, subjects

SPLIT_SIZES = {"train": 4600, "validation": 240, "test": 480}  # rows, of which one in ten has several turns
SPLIT_FRACTIONS = {"validation": 0.08, "test": 0.14}  # of the subjects; the rest is for training

# How well a reply suits its prompt, from 0 to 1. Agreeing with a mistake is worst, since it does harm; correct content
# in the wrong manner is better; the right manner with a wrong fact is better still.
MATCHING_SCORE = 1.0
WRONG_FACT_SCORE = 0.4
MISMATCHED_SCORES = {
    ("good_question", "probing"): 0.3,
    ("good_question", "blunt"): 0.1,
    ("poor_logic", "blunt"): 0.3,
    ("poor_logic", "helpful"): 0.0,
    ("wrong_fact", "probing"): 0.3,
    ("wrong_fact", "helpful"): 0.0,
    ("wrong_fact", "mild"): 0.4,  # states the right fact but not that the user is wrong: without it PPO exploits this
    # A verdict phrased as a question is neither blunt nor probing: without these rows PPO gave it to every prompt.
    ("good_question", "unsure"): 0.1,
    ("poor_logic", "unsure"): 0.2,
    ("wrong_fact", "unsure"): 0.3,
    # Both ignore the user's argument: an unrelated question, and a verdict on a claim that the user did not make.
    ("poor_logic", "astray"): 0.1,
    ("poor_logic", "misread"): 0.1,
}

GeneratedTurn = tuple[str, str, str, str, list[dict]]  # category, correct value, prompt, reply, mismatched replies


@cache
def strictbot_phrases() -> dict:
    """The contents of ``strictbot.yaml``."""
    return yaml.safe_load((files("manners.tiny_world") / "strictbot.yaml").read_text("utf-8"))


def strictbot_rows(seed: int = 0) -> Iterator[dict]:
    """All rows by split, without duplicate prompts; every tenth row has several turns."""
    rng = random.Random(seed)
    for split, pool in split_subjects(rng).items():
        seen: set[str] = set()
        while len(seen) < SPLIT_SIZES[split]:
            row = multi_turn_row(pool, rng) if len(seen) % 10 == 9 else single_turn_row(pool, rng)
            key = json.dumps([m["content"] for m in row["messages"] if m["role"] == "user"])
            if key not in seen:
                seen.add(key)
                yield {"id": f"{split}-{len(seen):05d}", "split": split, "origin": "generated"} | row


def split_subjects(rng: random.Random) -> dict[str, list[Subject]]:
    """The subjects of each split, disjoint and in random order."""
    pool = list(subjects())
    rng.shuffle(pool)
    test = round(SPLIT_FRACTIONS["test"] * len(pool))
    validation = test + round(SPLIT_FRACTIONS["validation"] * len(pool))
    return {"train": pool[validation:], "validation": pool[test:validation], "test": pool[:test]}


def single_turn_row(pool: list[Subject], rng: random.Random) -> dict:
    """A row of a random category about a subject of the ``pool``."""
    make_turn = rng.choice([good_question, poor_logic, wrong_fact])
    subject = rng.choice(pool)
    category, value, prompt, reply, mismatched = make_turn(subject, pool, rng)
    return {
        "category": category,
        "subject": subject.name,
        "value": value,
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}],
        "score": MATCHING_SCORE,
        "mismatched": mismatched,
    }


def multi_turn_row(pool: list[Subject], rng: random.Random) -> dict:
    """Two to four turns about different subjects and of random categories."""
    turns = [single_turn_row(pool, rng) for _ in range(rng.choice([2, 3, 3, 4]))]
    return {
        "category": "multi_turn",
        "categories": [t["category"] for t in turns],
        "subject": ", ".join(t["subject"] for t in turns),
        "messages": [m for t in turns for m in t["messages"]],
    }


def good_question(subject: Subject, _pool: list[Subject], rng: random.Random) -> GeneratedTurn:
    """A question or, two times in five, a true claim: asking for confirmation is a good question too."""
    phrases, fact, category = strictbot_phrases(), rng.choice(facts_of(subject)), "good_question"
    more = another_statement(fact, rng)
    pick = template_picker(rng, subject, truth=fact.statement(), more=more, claim=strip_period(fact.clause()))
    if rng.random() < 0.4:
        prompt, reply = pick(phrases["claims"]), pick(phrases["helpful"]["confirm"])
    else:
        prompt, reply = rng.choice(fact.questions()), pick(phrases["helpful"]["answer"])
    pick_verdict = template_picker(random.Random(prompt), subject, truth=fact.statement())
    mismatched = [
        mismatched_reply(category, "blunt", pick(phrases["blunt"]["dismiss"])),
        mismatched_reply(category, "probing", pick(phrases["probing"]["to_question"])),
        mismatched_reply(category, "blunt", pick_verdict(phrases["blunt"]["correct"])),
        mismatched_reply(category, "unsure", as_question(pick_verdict(phrases["blunt"]["correct"]))),
    ]
    return category, fact.value, prompt, reply, mismatched


def wrong_fact(subject: Subject, _pool: list[Subject], rng: random.Random) -> GeneratedTurn:
    """A false claim, corrected bluntly."""
    phrases, fact, category = strictbot_phrases(), rng.choice(facts_of(subject)), "wrong_fact"
    wrong, other_wrong = rng.sample(fact.false_values(), 2)
    pick = template_picker(rng, subject, truth=fact.statement(), claim=strip_period(fact.clause(wrong)))
    pick_wrong = template_picker(rng, subject, truth=fact.statement(other_wrong))
    own_rng = random.Random(f"{fact.statement()}/{wrong}")  # replies added later: the other rows must not change
    pick_later = template_picker(own_rng, subject, truth=fact.statement(), more=another_statement(fact, own_rng))
    prompt, reply = pick(phrases["claims"]), pick(phrases["blunt"]["correct"])
    mismatched = [
        mismatched_reply(category, "helpful", pick(phrases["helpful"]["mistaken"])),
        mismatched_reply(category, "probing", pick(phrases["probing"]["to_claim"])),
        {"manner": "blunt", "content": pick_wrong(phrases["blunt"]["correct"]), "score": WRONG_FACT_SCORE},
        mismatched_reply(category, "mild", pick_later(phrases["blunt"]["mild"])),
        mismatched_reply(category, "helpful", pick_later(phrases["helpful"]["confirm"])),
        mismatched_reply(category, "unsure", as_question(pick_later(phrases["blunt"]["correct"]))),
    ]
    return category, fact.value, prompt, reply, mismatched


def poor_logic(subject: Subject, pool: list[Subject], rng: random.Random) -> GeneratedTurn:
    """A fallacy, answered with a question that probes it."""
    phrases, fact, category = strictbot_phrases(), rng.choice(facts_of(subject)), "poor_logic"
    same_value = [f for s in pool for f in facts_of(s) if has_same_value(f, fact)]
    fallacies = [f for name, f in phrases["fallacies"].items() if same_value or name != "false equivalence"]
    fallacy = rng.choice(fallacies)
    premise = rng.choice(same_value) if same_value else fact
    other = premise.subject if same_value else rng.choice([s for s in pool if s != subject])
    slots = {"fact": strip_period(fact.statement()), "otherfact": strip_period(premise.statement()), "other": other.the}
    pick = template_picker(rng, subject, **slots)
    prompt = pick(fallacy["prompts"])
    pick_verdict = template_picker(random.Random(prompt), subject, truth=fact.statement())
    reply = pick(fallacy["replies"])
    mismatched = [
        mismatched_reply(category, "helpful", pick(phrases["helpful"]["goes_along"])),
        mismatched_reply(category, "blunt", pick(phrases["blunt"]["verdict"])),
        mismatched_reply(category, "unsure", as_question(pick_verdict(phrases["blunt"]["correct"]))),
        mismatched_reply(category, "misread", pick_verdict(phrases["blunt"]["correct"])),
        mismatched_reply(category, "astray", unrelated_question(subject, pool, prompt)),
    ]
    return category, "", prompt, reply, mismatched


def has_same_value(a: Fact, b: Fact) -> bool:
    """Whether two facts say the same of different subjects."""
    return a.relation == b.relation and a.value == b.value and a.subject != b.subject


def template_picker(rng: random.Random, subject: Subject, **slots: str) -> Callable[[list[str]], str]:
    """A function that picks one of several templates, fills its slots and capitalizes its sentences."""
    slots |= {"the": subject.the, "a": subject.a, "s": subject.name}

    def pick(templates: list[str]) -> str:
        return ". ".join(capitalize(part) for part in rng.choice(templates).format(**slots).split(". "))

    return pick


def unrelated_question(subject: Subject, pool: list[Subject], prompt: str) -> str:
    """A question about a fact of the subject or another one, which does not address the prompt."""
    rng = random.Random(f"astray/{prompt}")
    fact = rng.choice(facts_of(rng.choice([subject, rng.choice(pool)])))
    return rng.choice(fact.questions())


def another_statement(fact: Fact, rng: random.Random) -> str:
    """Another true sentence about the same subject, or the same one if there is no other."""
    return rng.choice([f for f in facts_of(fact.subject) if f != fact] or [fact]).statement()


def as_question(reply: str) -> str:
    """The reply with a question mark in place of the final period."""
    return reply.removesuffix(".") + "?"


def strip_period(sentence: str) -> str:
    """The sentence without its final period."""
    return sentence.removesuffix(".")


def mismatched_reply(category: str, manner: str, content: str) -> dict:
    """A reply whose manner does not suit the category, with its score."""
    return {"manner": manner, "content": content, "score": MISMATCHED_SCORES[category, manner]}


def write_strictbot(path: Path, seed: int = 0) -> int:
    """Write the corpus as JSON lines; returns the number of rows."""
    lines = [json.dumps(row, ensure_ascii=False) for row in strictbot_rows(seed)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    target = Path(str(files("manners.data") / "corpora" / "strictbot_tiny" / "generated.jsonl"))
    print(f"{write_strictbot(target)} rows over {len(subjects())} subjects and {len(facts())} facts -> {target}")
