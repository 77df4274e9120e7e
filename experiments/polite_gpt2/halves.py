"""Two disjoint halves of the Stanford Politeness Corpus: python experiments/polite_gpt2/halves.py FILE.csv OUT

A regressor on the first half pays PPO, and one on the second judges what comes of it: what the first alone likes, the
second does not. Requests with one opening, which PPO's prompts are, go to one half. OUT gets proxy.csv and gold.csv.
"""

import csv
import hashlib
import sys
from pathlib import Path

from manners.config.schema import DatasetConfig


def main(file: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with file.open(newline="", encoding="utf-8") as source:
        header, *rows = csv.reader(source)
    column = header.index("Request")
    for number, name in enumerate(("proxy", "gold")):
        half = [row for row in rows if half_of(row[column]) == number]
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as target:
            csv.writer(target).writerows([header, *half])
        print(f"{out / name}.csv: {len(half)} of {len(rows)} requests")


def half_of(request: str) -> int:
    opening = " ".join(request.split()[: DatasetConfig.prefix_words])
    return hashlib.sha256(f"half/{opening}".encode()).digest()[0] % 2


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
