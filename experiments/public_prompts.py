"""Prompts of public data for evaluate.py: python experiments/public_prompts.py DATA OUT

DATA is a folder with FalseQA's valid part, LOGIC's dev part, TruthfulQA and XSTest as their authors give them; files
that are missing are left out. OUT gets strictbot.jsonl, whose rows have the category that strictbot asks for (`python
evaluate.py run=... dataset=jsonl dataset.path=OUT/strictbot.jsonl dataset.style_judge=rules`; the report counts each
origin by itself), and xstest_safe.jsonl and xstest_unsafe.jsonl. From each set, the same sample is drawn every time.
LOGIC and XSTest have no replies that could be compared with: a placeholder stands in their rows, and the loss and the
column "in the data" of a report mean nothing.
"""

import csv
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SAMPLE = 100  # prompts of each set


def main(data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    sets = {
        "FalseQA, false premises": sample(false_premises(data / "falseqa_valid.csv", "1")),
        "FalseQA, their true twins": sample(false_premises(data / "falseqa_valid.csv", "0")),
        "LOGIC, fallacies": sample(fallacies(data / "logic_edu_dev.csv")),
        "TruthfulQA, misconceptions": sample(misconceptions(data / "truthfulqa.csv")),
    }
    write(out / "strictbot.jsonl", [row | {"origin": name} for name, rows in sets.items() for row in rows])
    for label in ("safe", "unsafe"):
        write(out / f"xstest_{label}.jsonl", list(xstest(data / "xstest_prompts.csv", label)))


def false_premises(file: Path, label: str) -> Iterator[dict[str, Any]]:
    """Questions with a false premise (label 1), which are to be rebutted, or their twins with a true one (0).

    Questions that have both labels are left out.
    """
    rows = rows_of(file)
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row["question"], set()).add(row["label"])
    for row in rows:
        if len(labels[row["question"]]) > 1:
            continue
        answer = row["answer"]
        answer = json.loads(answer)[0] if answer.startswith("[") else answer
        if row["label"] == label:
            yield exchange(row["question"], answer) | {"category": "wrong_fact" if label == "1" else "good_question"}


def fallacies(file: Path) -> Iterator[dict[str, Any]]:
    """Statements of a fallacy, which are to be asked about; definitions, quiz questions and fragments are left out."""
    definition = re.compile(r"fallac|example of|argument|this is when|occurs when|someone|speaker|conclusion", re.I)
    for row in rows_of(file):
        text = row["text"].strip().strip('"“”')
        if "?" not in text and len(text.split()) >= 8 and text[:1].isupper() and not definition.search(text):
            yield exchange(text, "…") | {"category": "poor_logic"}


def misconceptions(file: Path) -> Iterator[dict[str, Any]]:
    """What many people believe, as a claim: the best incorrect answer to a question, where it can stand by itself."""
    for row in rows_of(file):
        claim = row["Best Incorrect Answer"].strip()
        answers = re.match(r"(yes|no|it|they|he|she|there)\b", claim, re.I)  # which only the question explains
        if row["Category"] == "Misconceptions" and len(claim.split()) >= 5 and not answers:
            yield exchange(claim.rstrip(".") + ".", row["Best Answer"]) | {"category": "wrong_fact"}


def xstest(file: Path, label: str) -> Iterator[dict[str, Any]]:
    """Prompts that sound unsafe and are safe, or that are unsafe."""
    return (exchange(row["prompt"], "…") for row in rows_of(file) if row["label"] == label)


def exchange(prompt: str, reply: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt.strip()}, {"role": "assistant", "content": reply.strip()}]
    return {"split": "test", "messages": messages}


def sample(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    known = list(rows)
    return random.Random("public prompts").sample(known, min(SAMPLE, len(known)))


def rows_of(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        print(f"{file} is missing, and left out", file=sys.stderr)
        return []
    return list(csv.DictReader(file.open(encoding="utf-8")))


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{file}: {len(rows)} prompts")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
