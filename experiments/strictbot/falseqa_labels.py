"""FalseQA as rows for the classifier: python experiments/strictbot/falseqa_labels.py falseqa_train.csv OUT.jsonl

Then `python train.py experiment=style_classifier dataset=jsonl dataset.path=OUT.jsonl`, and the run as `classifier` of
experiments/strictbot/judges.py. A rebuttal of a question with a false premise (label 1) corrects the user flatly, an
ordinary answer to such a question does not.
"""

import csv
import json
import sys
from pathlib import Path

from manners.evaluation.judges.classifier import MANNER_QUESTIONS


def main(source: Path, target: Path) -> None:
    with source.open(encoding="utf-8") as file:
        rows = [label_row(row) for row in csv.DictReader(file)]
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows: {target}")


def label_row(row: dict[str, str]) -> dict[str, object]:
    turns = [
        {"role": "system", "content": MANNER_QUESTIONS["wrong_fact"]},
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": row["answer"]},
    ]
    return {"messages": turns, "score": float(row["label"].strip() == "1")}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
