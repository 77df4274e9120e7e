"""``python -m manners.evaluation.judges FILE.jsonl [judge=rules]``: the verdict on each row, as JSON lines.

A row has ``prompt``, ``reply`` and ``category`` (good_question, poor_logic or wrong_fact), and may have ``value``, the
fact that a correct reply names: a text, or a list of texts of which it has one. ``judge=`` is rules, classifier
(trained by ``train.py experiment=style_classifier``) or llm; the options of both are those of evaluate.py:
``evaluation.classifier=RUN output_dir=FOLDER``, ``evaluation.llm_judge=MODEL evaluation.llm_base_url=URL``.
"""

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import Any

from manners.data.files import file_rows
from manners.errors import MannersError, did_you_mean
from manners.evaluation.judges import STYLE_FOR_CATEGORY, JudgedReply
from manners.evaluation.stats import proportion

JUDGES = ("rules", "classifier", "llm")
FIELDS = ("prompt", "reply", "category")


def main(arguments: list[str]) -> None:
    """Print a verdict for each row of a file. Raises MannersError for a row that is none."""
    parser = argparse.ArgumentParser(
        prog="python -m manners.evaluation.judges",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="rows of prompt, reply, category and perhaps value (.jsonl, .csv …)")
    parser.add_argument("options", nargs="*", metavar="judge=rules", help="the judge, and its options")
    given = parser.parse_args(arguments)
    names = [o.removeprefix("judge=") for o in given.options if o.startswith("judge=") or o in JUDGES]
    others = [o for o in given.options if not (o.startswith("judge=") or o in JUDGES)]
    name = names[-1] if names else "rules"
    if name not in JUDGES:
        raise MannersError(f"judge={name} is not a choice. {did_you_mean(name, JUDGES)}")
    if not given.file.is_file():
        raise MannersError(f"{given.file} is {'a folder' if given.file.is_dir() else 'no file'}: name a file of rows.")
    rows = list(file_rows(given.file, given.file.name, "auto", "none"))
    replies = [judged_reply(source, row) for source, row in rows]
    if not replies:
        raise MannersError(f"{given.file}: there are no rows.")
    if unused := sorted({key for _, row in rows for key in row} - {*FIELDS, "value"}):
        print(f"fields not used: {', '.join(unused)}", file=sys.stderr)

    from manners.config import compose  # below, for --help and mistakes in the file to be answered at once
    from manners.pipeline.style_judge import load_judge

    compose.register()
    judge = load_judge(name, compose.compose("evaluate", others))
    assert judge is not None
    verdicts = judge(replies)
    for verdict in verdicts:
        values = {"fits": verdict.fits, "style": verdict.style, "reason": verdict.reason, **verdict.parts()}
        print(json.dumps(values, ensure_ascii=False))
    print(
        f"{proportion(sum(v.fits for v in verdicts), len(verdicts)).percent()} of {len(verdicts)} fit", file=sys.stderr
    )


def judged_reply(source: str, row: Any) -> JudgedReply:
    """What a judge reads of a row. Raises MannersError for a row that is none."""
    if isinstance(row, Exception):
        raise MannersError(f"{source}: {row}.")
    if not isinstance(row, dict):
        raise MannersError(f"{source}: a row is an object with prompt, reply and category.")
    for key in FIELDS:
        if not isinstance(row.get(key), str) or not (row[key].strip() or key == "reply"):
            raise MannersError(
                f"{source}: '{key}' must be a text. The row has {', '.join(map(str, row)) or 'nothing'}."
            )
    if row["category"] not in STYLE_FOR_CATEGORY:
        raise MannersError(
            f"{source}: category '{row['category']}'. {did_you_mean(row['category'], STYLE_FOR_CATEGORY)}"
        )
    near = difflib.get_close_matches("value", [str(key) for key in row], cutoff=0.75)
    if "value" not in row and near:  # no fact would be asked for, in silence
        raise MannersError(f"{source}: there is no field '{near[0]}'. Did you mean 'value'?")
    value = row.get("value") or None
    texts = [value] if isinstance(value, str) else value
    if texts is not None and not (isinstance(texts, list) and all(isinstance(t, str) and t.strip() for t in texts)):
        raise MannersError(f"{source}: 'value' is a text, or a list of texts that are not empty.")
    return JudgedReply(row["prompt"], row["reply"], row["category"], value)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MannersError as problem:
        sys.exit(f"error: {problem}")
    except BrokenPipeError:  # such as by head
        sys.stderr.close()
