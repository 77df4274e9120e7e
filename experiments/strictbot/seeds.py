"""Several seeds of SFT and PPO together: python experiments/strictbot/seeds.py EVALUATION_DIR EVALUATION_DIR ...

Each directory is of `evaluate.py run=[SFT_RUN,PPO_RUN] base=false` for one seed. Printed are, of both models, the style
accuracy, the share of words that are none, and the sentence that stands in most replies to poor logic; and the change
of style accuracy, paired, for each seed and over all of them, with bootstrap intervals over prompts.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from manners.evaluation.judges.readable import LETTERS, unknown_words
from manners.evaluation.stats import bootstrap_ratio, proportion


def main(folders: list[Path]) -> None:
    changes = []
    for folder in folders:
        records = [json.loads(line) for line in (folder / "replies.jsonl").read_text("utf-8").splitlines()]
        sft, ppo = ([r for r in records if r["model"] == name] for name in dict.fromkeys(r["model"] for r in records))
        print(f"{folder}\n  {describe(sft)}\n  {describe(ppo)}")
        assert [r["messages"] for r in sft] == [r["messages"] for r in ppo]
        fits = [np.array([float(bool(r["matches_style"])) for r in model]) for model in (sft, ppo)]
        changes.append(100 * (fits[1] - fits[0]))
        print(f"  change: {points(changes[-1])}")
        for category in sorted({r["category"] for r in sft}):
            print(f"    {category}: {points(changes[-1][[r['category'] == category for r in sft]])}")
    print(f"all seeds, {len(changes[0])} prompts: {points(np.mean(changes, 0))}")


def points(change: np.ndarray) -> str:
    e = bootstrap_ratio(change, np.ones(len(change)))
    return f"{e.value:+.1f} points [{e.low:+.1f}, {e.high:+.1f}]"


def describe(records: list[dict]) -> str:
    fits = proportion(sum(bool(r["matches_style"]) for r in records), len(records)).percent()
    unknown = sum(len(unknown_words(r["reply"], r["messages"][-1]["content"])) for r in records)
    words = sum(len(LETTERS.findall(r["reply"])) for r in records)
    replies = [r["reply"] for r in records if r["category"] == "poor_logic"]
    sentences = Counter(s.strip() for reply in replies for s in set(re.split(r"(?<=[.?!])\s+", reply)))
    sentence, count = sentences.most_common(1)[0]
    most = f"{count} of {len(replies)} replies to poor logic have {sentence!r}"
    return f"{records[0]['model']}: {fits} of {len(records)} fit, {unknown / words:.2%} of words are none; {most}"


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
