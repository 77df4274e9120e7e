"""``python -m manners.evaluation.judges FILE.jsonl [judge=rules]``: the verdict on each row, as JSON lines.

A row has ``prompt``, ``reply`` and ``category`` (good_question, poor_logic or wrong_fact), and may have ``value``, the
fact that a correct reply names: a text, or a list of texts of which it has one. ``judge=`` is rules, classifier
(trained by ``train.py experiment=style_classifier``) or llm; the options of both are those of evaluate.py:
``evaluation.classifier=RUN output_dir=FOLDER``, ``evaluation.llm_judge=MODEL evaluation.llm_base_url=URL``.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from manners.data.files import file_rows
from manners.errors import MannersError, did_you_mean
from manners.evaluation.judges import STYLE_FOR_CATEGORY, JudgedReply
from manners.evaluation.stats import proportion

JUDGES = ("rules", "classifier", "llm")


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
        raise MannersError(f"{given.file}: there is no such file.")
    replies = [judged_reply(s, row) for s, row in file_rows(given.file, given.file.name, "auto", "none")]

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
    if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("prompt", "reply", "category")):
        raise MannersError(f"{source}: a row has prompt, reply and category, each a text.")
    if row["category"] not in STYLE_FOR_CATEGORY:
        raise MannersError(
            f"{source}: category '{row['category']}'. {did_you_mean(row['category'], STYLE_FOR_CATEGORY)}"
        )
    if unknown := [key for key in row if did_you_mean_value(key)]:
        raise MannersError(f"{source}: there is no field '{unknown[0]}'. Did you mean 'value'?")
    value = row.get("value") or None
    texts = [value] if isinstance(value, str) else value
    if texts is not None and not (isinstance(texts, list) and all(isinstance(t, str) and t for t in texts)):
        raise MannersError(f"{source}: 'value' is a text, or a list of texts that are not empty.")
    return JudgedReply(row["prompt"], row["reply"], row["category"], value)


def did_you_mean_value(key: str) -> bool:
    """Whether a field is a misspelled ``value``: without it no fact would be asked for, in silence."""
    return key.lower() in ("values", "vaule", "val", "fact", "facts") or (key.lower() == "value" and key != "value")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MannersError as problem:
        sys.exit(f"error: {problem}")
    except BrokenPipeError:  # such as by head
        sys.stderr.close()
