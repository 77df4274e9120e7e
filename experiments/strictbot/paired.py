"""What PPO changed, prompt by prompt: python experiments/strictbot/paired.py outputs/runs/RUN

The difference of style accuracy before and after, paired, with a normal interval (McNemar's variance), and the sentence
that stands in most replies to poor logic.
"""

import json
import math
import re
import sys
from collections import Counter
from pathlib import Path


def main(folder: Path) -> None:
    before = json.loads((folder / "run.json").read_text())["before"]["generations"]
    after = json.loads((folder / "after.json").read_text())["generations"]
    pairs = [(b["matches_style"], a["matches_style"]) for b, a in zip(before, after, strict=True)]
    gained, lost, total = pairs.count((False, True)), pairs.count((True, False)), len(pairs)
    change = (gained - lost) / total
    error = 1.96 * math.sqrt(gained + lost - (gained - lost) ** 2 / total) / total
    print(f"of {total} replies {gained} fit that did not, {lost} no longer do: {100 * change:.1f} points ", end="")
    print(f"[{100 * (change - error):.1f}, {100 * (change + error):.1f}]")
    replies = [g["reply"] for g in after if g["category"] == "poor_logic"]
    sentences = Counter(s.strip() for reply in replies for s in set(re.split(r"(?<=[.?!])\s+", reply)))
    sentence, count = sentences.most_common(1)[0]
    print(f"in {count} of {len(replies)} replies to poor logic: {sentence}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
