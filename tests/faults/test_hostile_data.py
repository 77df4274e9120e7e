"""Files that were damaged, or made to harm: every row is read or reported, and only sentences reach the user."""

import json
import random
from collections import Counter

import pytest

from manners.data import loading, sources
from manners.data.tokenize import tokenize
from manners.data.types import data_digest, prompts_of, scored_replies
from manners.errors import MannersError
from tests.data.files import config
from tests.faults import hostile

COUNT = 200
SHORT = range(0, COUNT, 4)  # of which every case is one of the long form too
CALLED = {"scored": "prompt_completion", "pairs": "preference", "talk": "messages", "polite": "politeness"}
CALLED |= {"tree": "oasst", "flat": "oasst"}
TREES = ("tree", "flat")  # whose messages are counted, not rows: see tests/data/test_oasst.py


def damaged(number, folder):
    """The file of a case, and its options."""
    pick = random.Random(f"data/{number}")
    name, suffix, data = hostile.file(pick)
    path = folder / f"data{suffix}"
    path.write_bytes(data)
    format = pick.choice(
        ["auto", {"scored": "prompt_completion", "pairs": "preference", "talk": "messages"}.get(name, name)]
    )
    format = "oasst" if format in TREES else "politeness" if format == "polite" else format
    views = ["conversation", "scored", "prompt"] if name == "scored" else ["conversation", "prompt"]
    return name, path, {"format": format, "sample_types": views, "validation_share": 0.0, "test_share": 0.0}


def read(path, **options):
    return loading.load_splits(config(path, **options))


def told(sentence):
    """What reaches the user can be printed, and steers no terminal."""
    text = str(sentence)
    text.encode()
    assert text and "Traceback" not in text
    assert not [c for c in text if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160)], repr(text)


def case(number, folder, tokenizer):
    """ "read", or "refused" in a sentence; fails where a row was lost or anything else was raised."""
    name, path, options = damaged(number, folder)
    try:
        strict = read(path, **options)
    except MannersError as error:
        told(error)
        outcome = "refused"
    else:
        outcome = "read"
        assert not strict.skipped
    try:
        splits = read(path, on_invalid_row="skip", **options)
    except MannersError as error:
        told(error)
        assert outcome == "refused", "on_invalid_row=skip refuses what on_invalid_row=raise takes"
        return "refused"
    chats = [*splits.train, *splits.validation, *splits.test]
    for sentence in (*splits.skipped, *splits.notes):
        told(sentence)
    if name not in TREES and options["format"] != "oasst":
        assert len(chats) + len(splits.skipped) == sources.count_rows(path) == rows_of(path)
    if outcome == "read":
        assert len(chats) == len([*strict.train, *strict.validation, *strict.test])
    data_digest(chats)
    prompts_of(chats, "assistant", 2)
    scored_replies(chats)
    tokenize(chats, tokenizer, "all", 128)
    return "read" if outcome == "read" else "some rows reported"


def rows_of(path):
    """The rows of a file, counted without the project. Of a csv nobody knows but a csv reader: there it is our own."""
    if path.suffix == ".json":
        return len(json.loads(path.read_text("utf-8-sig")))
    if path.suffix == ".csv":
        return sources.count_rows(path)
    return sum(1 for line in path.read_bytes().split(b"\n") if line.strip())


@pytest.mark.parametrize("numbers", [SHORT, pytest.param(range(COUNT), marks=pytest.mark.long)], ids=["short", "long"])
def test_every_row_is_read_or_reported(numbers, tmp_path, tokenizer):
    outcomes, lost = Counter(), {}
    for number in numbers:
        try:
            outcomes[case(number, tmp_path, tokenizer)] += 1
        except Exception as error:  # noqa: BLE001  all of them are listed
            lost[number] = f"{type(error).__name__}: {str(error)[:200]}"
    print(f"damaged data: tried {len(numbers)}, survived {sum(outcomes.values())} {dict(outcomes)}, lost {len(lost)}")
    assert lost == {}


def test_what_looks_like_markup_is_printed_as_it_stands():
    from manners.pipeline.stages.context import console

    with console.capture() as said:
        console.print("left out: data.jsonl:3: unknown role '[/bold][link=x]'", highlight=False, soft_wrap=True)
    assert "'[/bold][link=x]'" in said.get()
