"""Public files as their authors publish them, by name of their columns; skipped where they are not there.

They are expected in the folder MANNERS_DATA, by default shared/data beside the checkout.
"""

import csv
import os
from pathlib import Path

import pytest

from manners.errors import MannersError
from manners.runtime.paths import ROOT
from tests.data.files import read

DATA = Path(os.environ.get("MANNERS_DATA", ROOT.parent / "shared" / "data"))
CORPORA = {  # file → columns, what is not used
    "falseqa_valid.csv": ({"prompt": "question", "completion": "answer"}, []),
    "truthfulqa.csv": (
        {"prompt": "Question", "completion": "Best Answer"},
        ["Type", "Category", "Best Incorrect Answer", "Correct Answers", "Incorrect Answers", "Source"],
    ),
    "xstest_completions_llama2.csv": (
        {},
        ["id", "type", "annotation_1", "annotation_2", "agreement", "final_label"],
    ),
    "logic_edu_dev.csv": ({}, ["fallacy"]),
}


@pytest.fixture(params=CORPORA)
def corpus(request):
    if not (DATA / request.param).is_file():
        pytest.skip(f"{DATA / request.param} is not there")
    return DATA / request.param, *CORPORA[request.param]


def test_public_file_is_read_completely(corpus):
    path, columns, unused = corpus
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    unread = {"label": None} if "label" in table[0] else {}  # FalseQA's is about the question, not the answer
    splits = read(path, columns=columns | unread or None, on_invalid_row="skip")
    assert len(splits.train) + len(splits.skipped) == len(table)
    assert len(splits.skipped) == sum(not all(row[c].strip() for c in columns.values()) for row in table)
    assert list(splits.unused) == unused
    if columns:
        texts = [[row[column] for column in columns.values()] for row in table]
        assert [[m["content"] for m in c.messages] for c in splits.train] == [
            t for t in texts if all(map(str.strip, t))
        ]


def test_public_file_without_columns_is_answered_with_them(corpus):
    path, columns, _ = corpus
    if columns:
        with pytest.raises(MannersError) as error:
            read(path)
        written = ", ".join(f"{ours}: {theirs}" for ours, theirs in columns.items())
        assert f"'dataset.columns={{{written}}}'" in str(error.value)
