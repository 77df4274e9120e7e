"""What PPO changed, prompt by prompt: python experiments/strictbot/paired.py outputs/runs/RUN [RUN of another seed ...]

In place of a run also a folder of evaluate.py, run=[BEFORE,AFTER]: outputs/evaluations/NAME. For each the difference of
style accuracy before and after, paired, the share of words that are none, and the sentence that stands in most replies
to poor logic. Of several also the mean difference, with a bootstrap interval over prompts, and by category.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from manners.data.readable import LETTERS, unknown_words
from manners.evaluation.stats import Estimate, bootstrap_ratio, paired_difference


def main(folders: list[Path]) -> None:
    changes = np.array([change_of(folder) for folder in folders]).mean(0)  # of each prompt
    categories = np.array([g["category"] for g in generations_of(folders[0])[1]])
    for category in ("", *dict.fromkeys(categories)) if len(folders) > 1 else ():
        of = changes[categories == category] if category else changes
        name = category.replace("_", " ") or f"{len(folders)} runs"
        print(f"{name}, {len(of)} prompts: {points(bootstrap_ratio(of, np.ones(len(of))))}")


def generations_of(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The judged replies before and after, of a run or of the last two models of an evaluation."""
    if (folder / "replies.jsonl").exists():
        replies = [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]
        models = list(dict.fromkeys(reply["model"] for reply in replies))
        first, last = ([r for r in replies if r["model"] == model] for model in models[-2:])
        return first, last
    before = json.loads((folder / "run.json").read_text())["before"]["generations"]
    return before, json.loads((folder / "after.json").read_text())["generations"]


def change_of(folder: Path) -> np.ndarray:
    """1 for a prompt whose reply fits now and did not, -1 for the opposite, else 0."""
    before, after = generations_of(folder)
    change = np.array([a["matches_style"] - b["matches_style"] for b, a in zip(before, after, strict=True)])
    gained, lost, total = int((change > 0).sum()), int((change < 0).sum()), len(change)
    print(f"{folder.name}: of {total} replies {gained} fit that did not, {lost} no longer do: ", end="")
    print(points(paired_difference(gained, lost, total)))
    print(f"  words that are none: {unknown_share(before):.2%} → {unknown_share(after):.2%}")
    replies = [g["reply"] for g in after if g["category"] == "poor_logic"]
    sentences = Counter(s.strip() for reply in replies for s in set(re.split(r"(?<=[.?!])\s+", reply)))
    sentence, count = sentences.most_common(1)[0]
    print(f"  in {count} of {len(replies)} replies to poor logic: {sentence}")
    return change


def unknown_share(generations: list[dict[str, Any]]) -> float:
    unknown = sum(len(unknown_words(g["reply"], g["prompt"])) for g in generations)
    return unknown / sum(len(LETTERS.findall(g["reply"])) for g in generations)


def points(e: Estimate) -> str:
    return f"{100 * e.value:+.1f} points [{100 * e.low:+.1f}, {100 * e.high:+.1f}]"


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
