"""``python -m manners.evaluation.judges FILE.jsonl [judge=rules]``: the verdict on each row, as JSON lines.

A row has ``prompt``, ``reply`` and ``category`` (good_question, poor_logic or wrong_fact), and may have ``value``, the
fact that a correct reply names: a text, or a list of beginnings of words.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from manners.data.files import file_rows
from manners.errors import MannersError, did_you_mean
from manners.evaluation.judges import STYLE_FOR_CATEGORY, judge_reply

JUDGES = ("rules",)


def main(arguments: list[str]) -> None:
    """Print a verdict for each row of a file. Raises MannersError for a row that is none."""
    parser = argparse.ArgumentParser(prog="python -m manners.evaluation.judges", description=__doc__)
    parser.add_argument("file", type=Path, help="rows of prompt, reply, category and perhaps value (.jsonl, .csv …)")
    parser.add_argument("judge", nargs="?", default="judge=rules", help="judge=rules")
    given = parser.parse_args(arguments)
    name = given.judge.removeprefix("judge=")
    if name not in JUDGES:
        raise MannersError(f"judge={name} is not a choice. {did_you_mean(name, JUDGES)}")
    if not given.file.is_file():
        raise MannersError(f"{given.file}: there is no such file.")
    for source, row in file_rows(given.file, given.file.name, "auto", "none"):
        print(json.dumps(verdict_of(source, row), ensure_ascii=False))


def verdict_of(source: str, row: Any) -> dict[str, Any]:
    """The verdict on a row, with its parts. Raises MannersError for a row that is none."""
    if isinstance(row, Exception):
        raise MannersError(f"{source}: {row}.")
    if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("prompt", "reply", "category")):
        raise MannersError(f"{source}: a row has prompt, reply and category, each a text.")
    if row["category"] not in STYLE_FOR_CATEGORY:
        raise MannersError(
            f"{source}: category '{row['category']}'. {did_you_mean(row['category'], STYLE_FOR_CATEGORY)}"
        )
    value = row.get("value") or None
    texts = [value] if isinstance(value, str) else value
    if texts is not None and not (isinstance(texts, list) and all(isinstance(t, str) and t for t in texts)):
        raise MannersError(f"{source}: 'value' is a text, or a list of texts that are not empty.")
    verdict = judge_reply(row["prompt"], row["reply"], row["category"], value)
    return {"fits": verdict.fits, "style": verdict.style, "reason": verdict.reason, **verdict.parts()}


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MannersError as problem:
        sys.exit(f"error: {problem}")
    except BrokenPipeError:  # such as by head
        sys.stderr.close()
