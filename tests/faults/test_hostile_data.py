"""Damaged and malicious files: every row is read or reported, and the user sees only printable sentences."""

import json
import random
from collections import Counter

import pytest

from manners.data import loading
from manners.data.csv_files import csv_cells
from manners.data.tokenize import tokenize
from manners.data.types import data_digest, prompts_of, scored_replies
from manners.errors import MannersError
from tests.data.files import config
from tests.faults import hostile

COUNT = 200
SHORT = range(0, COUNT, 4)  # a subset of the long form
FORMAT_OF = {"scored": "prompt_completion", "preference_pairs": "preference", "conversation": "messages"}
FORMAT_OF |= {"tree": "oasst", "flat": "oasst"}
TREES = ("tree", "flat")  # their messages are counted, not their rows: see tests/data/formats/test_oasst.py


def damaged_case(number, folder):
    """The name of a case's rows, its file and its options."""
    rng = random.Random(f"data/{number}")
    name, suffix, data = hostile.damaged_file(rng)
    path = folder / f"data{suffix}"
    path.write_bytes(data)
    format = rng.choice(["auto", FORMAT_OF.get(name, name)])
    sample_types = ["conversation", "scored", "prompt"] if name == "scored" else ["conversation", "prompt"]
    return name, path, {"format": format, "sample_types": sample_types, "validation_share": 0.0, "test_share": 0.0}


def read(path, **options):
    return loading.load_splits(config(path, **options))


def check_printable(sentence):
    """Whatever the user sees can be printed, and has no terminal control codes."""
    text = str(sentence)
    text.encode()
    assert text and "Traceback" not in text
    assert not [c for c in text if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160)], repr(text)


def load_case(number, folder, tokenizer):
    """ "read", "some rows reported" or "refused"; fails if a row is lost or any other error is raised."""
    name, path, options = damaged_case(number, folder)
    try:
        strict = read(path, **options)
    except MannersError as error:
        check_printable(error)
        outcome = "refused"
    else:
        outcome = "read"
        assert not strict.skipped
    try:
        splits = read(path, on_invalid_row="skip", **options)
    except MannersError as error:
        check_printable(error)
        assert outcome == "refused", "on_invalid_row=skip refuses what on_invalid_row=raise accepts"
        return "refused"
    conversations = [*splits.train, *splits.validation, *splits.test]
    for sentence in (*splits.skipped, *splits.notes):
        check_printable(sentence)
    if name not in TREES and options["format"] != "oasst":
        assert len(conversations) + len(splits.skipped) == expected_rows(path)
    if outcome == "read":
        assert len(conversations) == len([*strict.train, *strict.validation, *strict.test])
    data_digest(conversations)
    prompts_of(conversations, "assistant", 2)
    scored_replies(conversations)
    tokenize(conversations, tokenizer, "all", 128)
    return "read" if outcome == "read" else "some rows reported"


def expected_rows(path):
    """The rows of a file, counted independently, except in .csv files, where only a csv reader can count them."""
    if path.suffix == ".json":
        return len(json.loads(path.read_text("utf-8-sig")))
    if path.suffix == ".csv":
        with path.open(newline="", errors="replace") as file:
            return sum(1 for _ in csv_cells(file, "", ",")) - 1
    return sum(1 for line in path.read_bytes().split(b"\n") if line.strip())


@pytest.mark.parametrize("numbers", [SHORT, pytest.param(range(COUNT), marks=pytest.mark.long)], ids=["short", "long"])
def test_every_row_is_read_or_reported(numbers, tmp_path, tokenizer):
    outcomes, failures = Counter(), {}
    for number in numbers:
        try:
            outcomes[load_case(number, tmp_path, tokenizer)] += 1
        except Exception as error:  # noqa: BLE001  all of them are listed
            failures[number] = f"{type(error).__name__}: {str(error)[:200]}"
    passed = sum(outcomes.values())
    print(f"damaged data: tried {len(numbers)}, survived {passed} {dict(outcomes)}, failed {len(failures)}")
    assert failures == {}


def test_text_that_looks_like_markup_is_printed_unchanged():
    from manners.pipeline.stages.context import console

    with console.capture() as captured:
        console.print("left out: data.jsonl:3: unknown role '[/bold][link=x]'", highlight=False, soft_wrap=True)
    assert "'[/bold][link=x]'" in captured.get()
