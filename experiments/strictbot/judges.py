"""How often the style judges err: python experiments/strictbot/judges.py [FILE.csv …] [judge=classifier] [KEY=VALUE]

By part of the verdict, on the labeled replies of policies (judged_replies; rows on which both labels agree); on files
of FalseQA, such as its valid part: rebuttals of questions with a false premise (label 1), and answers (0); and on
XSTest's replies with people's labels: how often the report's metric "refusal" errs, on full refusals and compliance.
"""

import csv
import json
import sys
from pathlib import Path

from manners.config import compose
from manners.data.sources import CORPORA
from manners.evaluation.judges import Judge, JudgedReply
from manners.evaluation.metrics.assistant_style import refusal
from manners.evaluation.stats import proportion
from manners.pipeline.style_judge import load_judge

LABELS = CORPORA / "judged_replies" / "judged_replies.jsonl"


def main(arguments: list[str]) -> None:
    names = [a.removeprefix("judge=") for a in arguments if a.startswith("judge=")] or ["rules"]
    files = [Path(a) for a in arguments if a.endswith(".csv")]
    compose.register()
    cfg = compose.compose("evaluate", [a for a in arguments if "=" in a and not a.startswith("judge=")])
    judge = load_judge(names[0], cfg)
    assert judge is not None
    print(f"| error of judge={names[0]} | |\n| --- | --- |")
    on_labels(judge)
    for file in files:
        rows = list(csv.DictReader(file.open(encoding="utf-8")))
        if rows and "final_label" in rows[0]:
            on_xstest(rows)
        else:
            on_falseqa(judge, file.stem, rows)


def on_labels(judge: Judge) -> None:
    rows = [json.loads(line) for line in LABELS.read_text("utf-8").splitlines()]
    verdicts = judge([JudgedReply(r["prompt"], r["reply"], r["category"], r.get("value")) for r in rows])
    for part in ("manner", "relevance", "sense", "fits"):
        wrong = []
        for row, verdict in zip(rows, verdicts, strict=True):
            first, second = (label[part] for label in row["labels"])
            found = verdict.fits and row["ends"] if part == "fits" else getattr(verdict, part)
            if first == second and found is not None:
                wrong.append(found != first)
        if wrong:
            print(f"| {part}, {len(wrong)} policy replies | {proportion(sum(wrong), len(wrong)).percent()} |")
    for fits, name in ((True, "that fit, found"), (False, "others, rejected")):  # by both labels
        group = [(r, v) for r, v in zip(rows, verdicts, strict=True) if all(x["fits"] == fits for x in r["labels"])]
        right = sum((verdict.fits and row["ends"]) == fits for row, verdict in group)
        print(f"| … of the {len(group)} {name} | {proportion(right, len(group)).percent()} |")


def on_falseqa(judge: Judge, name: str, rows: list[dict[str, str]]) -> None:
    answers = [r["answer"] if not r["answer"].startswith("[") else json.loads(r["answer"])[0] for r in rows]
    verdicts = judge([JudgedReply(r["question"], a, "wrong_fact") for r, a in zip(rows, answers, strict=True)])
    wrong = [verdict.manner != (row["label"].strip() == "1") for row, verdict in zip(rows, verdicts, strict=True)]
    print(f"| {name}, {len(rows)} answers | {proportion(sum(wrong), len(wrong)).percent()} |")


def on_xstest(rows: list[dict[str, str]]) -> None:
    """Partial refusals (3) are left out: the metric knows only yes and no."""
    for label, name in (("2_full_refusal", "full refusals, missed"), ("1_full_compliance", "answers, called refusals")):
        replies = [r["completion"] for r in rows if r["final_label"] == label]
        wrong = sum(bool(refusal(reply)) != label.startswith("2") for reply in replies)
        print(f"| refusal: XSTest's {len(replies)} {name} | {proportion(wrong, len(replies)).percent()} |")


if __name__ == "__main__":
    main(sys.argv[1:])
