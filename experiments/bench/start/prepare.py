"""Write the rows that the first step is taken on, and see that nothing has to be made for the first time.

Our MLflow store and TRL's copy of the rows are made once and then found, as they are for anyone who trains twice.
"""

import itertools
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDER = "outputs/bench/start"
ROWS = f"{FOLDER}/rows"
PYTHON = ".venv/bin/python"
TINY = "src/manners/models/tiny"
# A clone of GitHub's ashleve/lightning-hydra-template; and in the folder "packages" beside it what that wants beyond
# our own environment: .venv/bin/pip install --no-deps --target outputs/bench/start/packages \
#     rootutils hydra-colorlog colorlog python-dotenv
TEMPLATE = f"{FOLDER}/template"
CORPUS = ROOT / "src" / "manners" / "data" / "corpora" / "strictbot" / "generated.jsonl"


def main() -> None:
    (ROOT / ROWS).mkdir(parents=True, exist_ok=True)
    with CORPUS.open(encoding="utf-8") as file:
        chats = [row["messages"] for row in map(json.loads, itertools.islice(file, 164))]
    split = ["train"] * 160 + ["validation"] * 4
    rows = [{"messages": chat, "split": part} for chat, part in zip(chats, split, strict=True)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (ROOT / ROWS / "train.jsonl").write_text(text, encoding="utf-8")
    for side in ("ours", "trl"):
        subprocess.run([PYTHON, "experiments/bench/start/clock.py", side, "step"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
