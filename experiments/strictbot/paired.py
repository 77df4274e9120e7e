"""What PPO changed, prompt by prompt: python experiments/strictbot/paired.py outputs/runs/RUN [RUN of another seed ...]

In place of a run also a folder of evaluate.py, run=[BEFORE,AFTER]: outputs/evaluations/NAME, of which the last two
models count, but for a prompted base. For each the difference of style accuracy before and after, paired, the share of
words that are none, and the sentence that stands in most replies to poor logic. Of several also the mean difference,
with a bootstrap interval over prompts, and by category.
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
    if not folders:
        sys.exit(__doc__)
    prompts = [[g["prompt"] for g in generations_of(folder)[1]] for folder in folders]
    for folder, others in zip(folders, prompts, strict=True):
        if others != prompts[0]:
            sys.exit(f"{folder} has other prompts than {folders[0]}: evaluate all on the same ones.")
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
        models = dict.fromkeys(reply["model"] for reply in replies)
        compared = [name for name in models if not name.endswith("(prompted)")][-2:]
        if len(compared) < 2:
            sys.exit(f"{folder} has one model alone: evaluate.py run=[BEFORE,AFTER].")
        first, last = ([r for r in replies if r["model"] == name] for name in compared)
    elif (folder / "after.json").exists():
        first = json.loads((folder / "run.json").read_text())["before"]["generations"]
        last = json.loads((folder / "after.json").read_text())["generations"]
    else:
        sys.exit(f"{folder} is neither a finished run nor an evaluation: outputs/runs/NAME, outputs/evaluations/NAME.")
    if not first or any(g["matches_style"] is None for g in (*first, *last)):
        sys.exit(f"{folder}: no style judge has judged these replies: evaluate.py dataset.style_judge=rules.")
    return first, last


def change_of(folder: Path) -> np.ndarray:
    """1 for a prompt whose reply fits now and did not, -1 for the opposite, else 0."""
    before, after = generations_of(folder)
    change = np.array([a["matches_style"] - b["matches_style"] for b, a in zip(before, after, strict=True)])
    gained, lost, total = int((change > 0).sum()), int((change < 0).sum()), len(change)
    names = " → ".join(generations[0]["model"] for generations in (before, after) if "model" in generations[0])
    print(f"{folder.name}{f' ({names})' if names else ''}: of {total} replies ", end="")
    print(f"{gained} fit that did not, {lost} no longer do: ", end="")
    print(points(paired_difference(gained, lost, total)))
    print(f"  words that are none: {unknown_share(before):.2%} → {unknown_share(after):.2%}")
    replies = [g["reply"] for g in after if g["category"] == "poor_logic"]
    sentences = Counter(s.strip() for reply in replies for s in set(re.split(r"(?<=[.?!])\s+", reply)))
    for sentence, count in sorted(sentences.items(), key=lambda item: (-item[1], item[0]))[:1]:
        print(f"  in {count} of {len(replies)} replies to poor logic: {sentence}")
    return change


def unknown_share(generations: list[dict[str, Any]]) -> float:
    unknown = sum(len(unknown_words(g["reply"], g["prompt"])) for g in generations)
    return unknown / max(sum(len(LETTERS.findall(g["reply"])) for g in generations), 1)


def points(e: Estimate) -> str:
    return f"{100 * e.value:+.1f} points [{100 * e.low:+.1f}, {100 * e.high:+.1f}]"


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
