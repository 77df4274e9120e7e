"""The generated strictbot corpus: good questions, poor logic and wrong facts over the small world.

``python -m manners.tiny_world.strictbot`` writes ``data/corpora/strictbot/generated.jsonl``, the same bytes each time.
Subjects are dealt to train, validation and test, so that the test asks about facts that no training row mentions
as its subject. Each prompt carries replies that do not fit it, with a score, for the reward model.
"""

import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml

from manners.tiny_world.facts import Fact, Subject, capitalise, facts, facts_of, subjects

SIZES = {"train": 4600, "validation": 240, "test": 480}  # rows, of which one in ten is a chat of several turns
SHARES = {"validation": 0.08, "test": 0.14}  # of the subjects; the rest is for training

# How well a manner serves a prompt, from 0 to 1. Agreeing with a mistake is worst, since it does harm; a wrong
# tone over right content is better; the right manner with a wrong fact in it lies between.
FIT = 1.0
RIGHT_MANNER_WRONG_FACT = 0.4
MISFIT = {
    ("good_question", "probing"): 0.3,
    ("good_question", "blunt"): 0.1,
    ("poor_logic", "blunt"): 0.3,
    ("poor_logic", "helpful"): 0.0,
    ("wrong_fact", "probing"): 0.3,
    ("wrong_fact", "helpful"): 0.0,
    ("wrong_fact", "mild"): 0.4,  # names the right fact and leaves the mistake uncalled: PPO falls for it otherwise
    # A verdict put as a question is neither blunt nor a question to think about: PPO said it to everything.
    ("good_question", "unsure"): 0.1,
    ("poor_logic", "unsure"): 0.2,
    ("wrong_fact", "unsure"): 0.3,
    # Neither hears what was argued: a question for a fact, and a verdict on a claim that nobody made.
    ("poor_logic", "astray"): 0.1,
    ("poor_logic", "misread"): 0.1,
}


@cache
def strictbot_words() -> dict:
    return yaml.safe_load((files("manners.tiny_world") / "strictbot.yaml").read_text("utf-8"))


def strictbot_rows(seed: int = 0) -> Iterator[dict]:
    """All rows, split by split."""
    rng = random.Random(seed)
    for split, pool in split_subjects(rng).items():
        seen: set[str] = set()
        while len(seen) < SIZES[split]:
            row = make_conversation(pool, rng) if len(seen) % 10 == 9 else single(pool, rng)
            key = json.dumps([m["content"] for m in row["messages"] if m["role"] == "user"])
            if key not in seen:
                seen.add(key)
                yield {"id": f"{split}-{len(seen):05d}", "split": split, "origin": "generated"} | row


def split_subjects(rng: random.Random) -> dict[str, list[Subject]]:
    pool = list(subjects())
    rng.shuffle(pool)
    test = round(SHARES["test"] * len(pool))
    validation = test + round(SHARES["validation"] * len(pool))
    return {"train": pool[validation:], "validation": pool[test:validation], "test": pool[:test]}


def single(pool: list[Subject], rng: random.Random) -> dict:
    kind = rng.choice([good_question, poor_logic, wrong_fact])
    subject = rng.choice(pool)
    category, value, prompt, reply, mismatched = kind(subject, pool, rng)
    return {
        "category": category,
        "subject": subject.name,
        "value": value,
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}],
        "score": FIT,
        "mismatched": mismatched,
    }


def make_conversation(pool: list[Subject], rng: random.Random) -> dict:
    """Two to four turns on different subjects, whose manner changes with the user's turn."""
    turns = [single(pool, rng) for _ in range(rng.choice([2, 3, 3, 4]))]
    return {
        "category": "multi_turn",
        "categories": [t["category"] for t in turns],
        "subject": ", ".join(t["subject"] for t in turns),
        "messages": [m for t in turns for m in t["messages"]],
    }


Made = tuple[str, str, str, str, list[dict]]  # category, right value, prompt, fitting reply, replies that do not fit


def good_question(subject: Subject, _pool: list[Subject], rng: random.Random) -> Made:
    """A question, or (two in five) a claim that is right: asking for confirmation is a good question too."""
    fact = rng.choice(facts_of(subject))
    say = form_picker(rng, subject, truth=fact.statement(), more=another(fact, rng), claim=bare(fact.says()))
    if rng.random() < 0.4:
        prompt, reply = say(strictbot_words()["claims"]), say(strictbot_words()["helpful"]["confirm"])
    else:
        prompt, reply = rng.choice(fact.questions()), say(strictbot_words()["helpful"]["answer"])
    say_against = form_picker(random.Random(prompt), subject, truth=fact.statement())
    category = "good_question"
    return (
        category,
        fact.value,
        prompt,
        reply,
        [
            negative_reply(category, "blunt", say(strictbot_words()["blunt"]["dismiss"])),
            negative_reply(category, "probing", say(strictbot_words()["probing"]["to_question"])),
            negative_reply(category, "blunt", say_against(strictbot_words()["blunt"]["correct"])),
            negative_reply(category, "unsure", unsure(say_against(strictbot_words()["blunt"]["correct"]))),
        ],
    )


def wrong_fact(subject: Subject, _pool: list[Subject], rng: random.Random) -> Made:
    fact = rng.choice(facts_of(subject))
    wrong, worse = rng.sample(fact.false_values(), 2)
    say = form_picker(rng, subject, truth=fact.statement(), claim=bare(fact.says(wrong)))
    say_worse = form_picker(rng, subject, truth=fact.statement(worse))
    aside = random.Random(f"{fact.statement()}/{wrong}")  # so that the rows are what they were without this reply
    say_mildly = form_picker(aside, subject, truth=fact.statement(), more=another(fact, aside))
    category = "wrong_fact"
    return (
        category,
        fact.value,
        say(strictbot_words()["claims"]),
        say(strictbot_words()["blunt"]["correct"]),
        [
            negative_reply(category, "helpful", say(strictbot_words()["helpful"]["mistaken"])),
            negative_reply(category, "probing", say(strictbot_words()["probing"]["to_claim"])),
            {
                "manner": "blunt",
                "content": say_worse(strictbot_words()["blunt"]["correct"]),
                "score": RIGHT_MANNER_WRONG_FACT,
            },
            negative_reply(category, "mild", say_mildly(strictbot_words()["blunt"]["mild"])),
            negative_reply(category, "helpful", say_mildly(strictbot_words()["helpful"]["confirm"])),
            negative_reply(category, "unsure", unsure(say_mildly(strictbot_words()["blunt"]["correct"]))),
        ],
    )


def poor_logic(subject: Subject, pool: list[Subject], rng: random.Random) -> Made:
    fact = rng.choice(facts_of(subject))
    twins = [f for s in pool for f in facts_of(s) if is_twin(f, fact)]
    fallacies = (
        strictbot_words()["logic"]
        if twins
        else {k: v for k, v in strictbot_words()["logic"].items() if k != "alike in one thing"}
    )
    fallacy = rng.choice(list(fallacies.values()))
    twin = rng.choice(twins) if twins else fact
    other = twin.subject if twins else rng.choice([s for s in pool if s != subject])
    say = form_picker(rng, subject, fact=bare(fact.statement()), otherfact=bare(twin.statement()), other=other.the)
    category = "poor_logic"
    prompt = say(fallacy["prompts"])
    say_against = form_picker(random.Random(prompt), subject, truth=fact.statement())
    return (
        category,
        "",
        prompt,
        say(fallacy["replies"]),
        [
            negative_reply(category, "helpful", say(strictbot_words()["helpful"]["goes_along"])),
            negative_reply(category, "blunt", say(strictbot_words()["blunt"]["verdict"])),
            negative_reply(category, "unsure", unsure(say_against(strictbot_words()["blunt"]["correct"]))),
            negative_reply(category, "misread", say_against(strictbot_words()["blunt"]["correct"])),
            negative_reply(category, "astray", plain_question(subject, pool, prompt)),
        ],
    )


def is_twin(a: Fact, b: Fact) -> bool:
    return a.relation == b.relation and a.value == b.value and a.subject != b.subject


def form_picker(rng: random.Random, subject: Subject, **slots: str) -> Callable[[list[str]], str]:
    """A function that picks one of several forms and fills its slots."""
    slots |= {"the": subject.the, "a": subject.a, "s": subject.name}

    def say(forms: list[str]) -> str:
        return ". ".join(capitalise(part) for part in rng.choice(forms).format(**slots).split(". "))

    return say


def plain_question(subject: Subject, pool: list[Subject], about: str) -> str:
    """A question for a fact, about the prompt's subject or another: no fitting reply to any prompt."""
    rng = random.Random(f"astray/{about}")
    fact = rng.choice(facts_of(rng.choice([subject, rng.choice(pool)])))
    return rng.choice(fact.questions())


def another(fact: Fact, rng: random.Random) -> str:
    """A second true sentence about the same subject; the same one where the world knows no other."""
    return rng.choice([f for f in facts_of(fact.subject) if f != fact] or [fact]).statement()


def unsure(reply: str) -> str:
    """The same words, the last sentence with a question mark."""
    return reply.removesuffix(".") + "?"


def bare(sentence: str) -> str:
    return sentence.removesuffix(".")


def negative_reply(category: str, manner: str, content: str) -> dict:
    return {"manner": manner, "content": content, "score": MISFIT[category, manner]}


def write_strictbot(path: Path, seed: int = 0) -> int:
    lines = [json.dumps(row, ensure_ascii=False) for row in strictbot_rows(seed)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    target = Path(str(files("manners.data") / "corpora" / "strictbot" / "generated.jsonl"))
    print(f"{write_strictbot(target)} rows over {len(subjects())} subjects and {len(facts())} facts -> {target}")
