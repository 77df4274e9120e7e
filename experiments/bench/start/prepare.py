"""Write the training rows, and run each command once so that no cache is cold.

Our MLflow store and TRL's cached dataset are created once and reused, as for anybody who trains twice.
"""

import itertools
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDER = "outputs/bench/start"
ROWS = f"{FOLDER}/rows"
PYTHON = ".venv/bin/python"
TINY, SMOLLM = "src/manners/models/tiny", "outputs/bench/smollm2-135m"  # see smollm.py
# A clone of ashleve/lightning-hydra-template on GitHub. The folder "packages" next to it has what the template needs in
# addition to our environment: .venv/bin/pip install --no-deps --target outputs/bench/start/packages \
#     rootutils hydra-colorlog colorlog python-dotenv
TEMPLATE = f"{FOLDER}/template"
CORPUS = ROOT / "src" / "manners" / "data" / "corpora" / "strictbot_tiny" / "generated.jsonl"


def main() -> None:
    (ROOT / ROWS).mkdir(parents=True, exist_ok=True)
    with CORPUS.open(encoding="utf-8") as file:
        chats = [row["messages"] for row in map(json.loads, itertools.islice(file, 164))]
    splits = ["train"] * 160 + ["validation"] * 4
    rows = [{"messages": chat, "split": split} for chat, split in zip(chats, splits, strict=True)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (ROOT / ROWS / "train.jsonl").write_text(text, encoding="utf-8")
    for side in ("ours", "trl"):
        subprocess.run([PYTHON, "experiments/bench/start/clock.py", side, "step"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
