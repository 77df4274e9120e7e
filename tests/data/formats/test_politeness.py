"""The Stanford Politeness Corpus: small files of its schema written by hand, and the real ones if available.

The real files are expected in the folder MANNERS_DATA, by default shared/data beside the checkout.
"""

import csv
import os
import re
from collections import Counter, defaultdict
from pathlib import Path
from statistics import correlation, fmean, pstdev

import pytest
import yaml

from manners.data.formats.politeness import HEADER, column_names, decode_entities
from manners.data.types import ScoredReply, scored_replies
from manners.errors import MannersError
from manners.runtime.paths import CONF
from tests.data.files import read, write

HINT = "Fix the row, or skip such rows: dataset.on_invalid_row=skip."


def line(request, scores, normalized="0.5", ident="1"):
    return ",".join(
        ["Wikipedia", ident, request, *map(str, scores), *(f"A{i}Z" for i in range(len(scores))), normalized]
    )


def corpus(folder, *lines, name="corpus.csv"):
    path = folder / name
    text = [(row if isinstance(row, bytes) else row.encode()) for row in (",".join(HEADER), *lines)]
    path.write_bytes(b"\n".join(text) + b"\n")
    return path


@pytest.mark.parametrize("format", ["auto", "politeness"])
def test_score_is_the_mean_over_all_annotators(tmp_path, format):
    path = corpus(
        tmp_path,
        line("could you look at it?", [13, 17, 9, 21, 15], "0.25"),
        line("why did you do it?", [1, 2, 3, 4, 5, 6, 7, 8, 9], "-1.5"),
        line("thanks. would you mind?", [25] * 9 + [24], "2.25"),
    )
    chats = read(path, format=format, sample_types=["scored"]).train
    assert scored_replies(chats) == [
        ScoredReply([], "could you look at it?", 15.0, "corpus.csv:2"),
        ScoredReply([], "why did you do it?", 5.0, "corpus.csv:3"),
        ScoredReply([], "thanks. would you mind?", 24.9, "corpus.csv:4"),
    ]
    assert [c.messages[0]["role"] for c in chats] == ["text"] * 3
    assert [c.metadata["normalized_score"] for c in chats] == [0.25, -1.5, 2.25]
    assert [c.metadata["Id"] for c in chats] == ["1", "1", "1"]


def test_normalized_score_can_be_used_instead(tmp_path):
    path = corpus(tmp_path, line("could you?", [13] * 5, "-0.25"))
    assert scored_replies(read(path, sample_types=["scored"], score_field="normalized_score").train)[0].score == -0.25


@pytest.mark.parametrize(
    ("encoded", "decoded"),
    [
        ("yes&#44 but why?", "yes, but why?"),
        ("&#34why?&#34", '"why?"'),
        ("the name&#58 can you?", "the name; can you?"),  # 58 is the colon's number, used for the semicolon
        ("see talk:bristol", "see talk:bristol"),
        ("&lt;url&gt; and &lt;url&gt;?", "<url> and <url>?"),
        ("10&#44000 to 199&#44500+", "10,000 to 199,500+"),  # 44000 is a Korean syllable's number
        ("the &#344th of july&#34", 'the "4th of july"'),
        ("[&#91&#582003", "[[2003"),
        ("it&#96s", "it`s"),
        ("knowledge&mdash&#58but", "knowledge—but"),
        ("&#12375&#58&#12398&#58 (shinobi)", "しの (shinobi)"),
        ("&amp&#58oslash&#58", "ø"),
        ("&amp;lt;url&amp;gt;", "<url>"),
        ("&amp;#44; &amp;amp;#58;", ", :"),
        ("a &amp b &lt c", "a & b < c"),
        ("r&b, ae&i, g&s & q&a", "r&b, ae&i, g&s & q&a"),
        ("?action=view&section=2&copy=1&times=3", "?action=view&section=2&copy=1&times=3"),
        ("&unknown; &#;", "&unknown; &#;"),
    ],
)
def test_entities_are_decoded_in_all_their_spellings(tmp_path, encoded, decoded):
    assert decode_entities(encoded) == decoded
    request = f'"{encoded}"' if "," in encoded else encoded
    assert read(corpus(tmp_path, line(request, [13] * 5))).train[0].messages[0]["content"] == decoded


def test_quoted_cells_need_not_be_utf8(tmp_path):
    path = corpus(
        tmp_path,
        line('"Why, and what is ""it""?"', [13] * 5),
        line('"@Andr\u00e1s: “good”?"', [13] * 5),  # UTF-8
        line('"@Andr\u00e1s: “good”?"', [13] * 5).encode("cp1252"),
        line("\u00e1 + ?", [13] * 5).encode().replace(b"?", "\u00e1".encode("cp1252")),  # both in one cell
        line("\u00e1", [13] * 5).replace("Wikipedia", "Caf\u00e9").encode("cp1252"),
    )
    chats = read(path).train
    assert [c.messages[0]["content"] for c in chats] == [
        'Why, and what is "it"?',
        "@András: “good”?",
        "@András: “good”?",
        "á + á",
        "á",
    ]
    assert chats[-1].metadata["Community"] == "Café"


@pytest.mark.parametrize("annotators", [1, 2, 4, 7, 12])
def test_any_number_of_annotators_is_read(tmp_path, annotators):
    scores = [(3 * n) % 25 + 1 for n in range(annotators)]
    (row,) = read(corpus(tmp_path, line("why?", scores))).train  # a header of five, as in the published file
    assert row.metadata["score"] == pytest.approx(fmean(scores))
    own = tmp_path / "own.csv"
    own.write_text(",".join(column_names(annotators)) + "\n" + line("why?", scores) + "\n")
    (row,) = read(own).train
    assert (row.metadata["score"], row.messages[0]["content"]) == (pytest.approx(fmean(scores)), "why?")
    as_json = {"Request": "why?", "Normalized Score": 0.5} | {f"Score{n}": s for n, s in enumerate(scores, 1)}
    (row,) = read(write(tmp_path, as_json)).train
    assert row.metadata["score"] == pytest.approx(fmean(scores))


def test_cells_of_a_missing_annotator_may_be_empty(tmp_path):
    text = "Wikipedia,1,why?,10,11,12,13,,A,B,C,D,,0.5"
    padded = line("why?", [10, 11, 12, 13]) + ",,"
    assert [c.metadata["score"] for c in read(corpus(tmp_path, text, padded)).train] == [11.5, 11.5]


def test_rows_padded_by_a_spreadsheet_are_read(tmp_path):
    header = ",".join(HEADER) + "," * 10
    rows = [header, line("a?", [5] * 5) + "," * 10, line("b?", [6] * 10)]
    (tmp_path / "wide.csv").write_text("\n".join(rows))
    assert [s.score for s in scored_replies(read(tmp_path / "wide.csv", sample_types=["scored"]).train)] == [5.0, 6.0]


def test_row_may_be_a_json_object(tmp_path):
    row = {"Request": "a&#44 b?", "Normalized Score": 0.5} | {f"Score{n}": n for n in range(1, 6)}
    [chat] = read(write(tmp_path, row), sample_types=["scored"]).train
    assert (chat.messages[0]["content"], chat.metadata["score"]) == ("a, b?", 3.0)


FIVE = [13] * 5
BAD = {
    "a comma too many": (
        line("yes, but why?", FIVE),
        "15 cells: expected Community, Id, Request, a Score and a TurkId of each annotator, and Normalized Score",
    ),
    "no normalized score": (
        line("why?", FIVE).rsplit(",", 1)[0],
        "13 cells: expected Community, Id, Request, a Score and a TurkId of each annotator, and Normalized Score",
    ),
    "no number": (line("why?", [13, 13, "x", 13, 13]), "field 'Score3' must be a finite number, not 'x'"),
    "no score": (line("why?", [13, 13, "", 13, 13]), "field 'Score3' is missing"),
    "no ninth score": (line("why?", [*[13] * 8, ""]), "field 'Score9' is missing"),
    "off the scale": (line("why?", [13, 26, 13, 13, 13]), "field 'Score2' must be from 1 to 25, not 26"),
    "below the scale": (line("why?", [0, 13, 13, 13, 13]), "field 'Score1' must be from 1 to 25, not 0"),
    "nan": (line("why?", FIVE, "nan"), "field 'Normalized Score' must be a finite number, not nan"),
    "no request": (line(" ", FIVE), "field 'Request' is missing"),
    "a request of nothing": (line("&#32;", FIVE), "field 'Request' is empty"),
    "two commas too many": (line("yes, but, why?", FIVE), "field 'Score1' must be a finite number, not ' but'"),
    "no encoding": (
        line("caf?", FIVE).encode().replace(b"?", b"\x81"),
        "byte 0x81 is neither UTF-8 nor Windows-1252",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_invalid_row_is_refused_with_file_line_and_field(tmp_path, name):
    invalid, expected = BAD[name]
    path = corpus(tmp_path, line("a?", FIVE), invalid, line("b?", FIVE))
    with pytest.raises(MannersError) as error:
        read(path)
    assert str(error.value) == f"corpus.csv:3: {expected}. {HINT}"
    splits = read(path, on_invalid_row="skip")
    assert (len(splits.train), splits.skipped) == (2, [f"corpus.csv:3: {expected}"])


def test_another_table_is_refused(tmp_path):
    (tmp_path / "other.csv").write_text("Community,Id,Request,Score\na,b,c,1\n")
    with pytest.raises(MannersError) as error:
        read(tmp_path / "other.csv", format="politeness")
    assert str(error.value) == (
        "other.csv:1: these are not the columns of the Stanford Politeness Corpus, which begin with Community, Id, "
        "Request, Score1. For other files: dataset.format=auto."
    )
    (tmp_path / "latin.csv").write_bytes(b"text,score\ncaf\xe9,1\n")  # only the corpus may be in Windows-1252
    with pytest.raises(MannersError, match=r"latin\.csv:2: field 'text' is not UTF-8"):
        read(tmp_path / "latin.csv")


def test_dataset_config_reads_the_corpus(tmp_path):
    recipe = yaml.safe_load((CONF / "dataset" / "stanford_politeness.yaml").read_text("utf-8"))
    assert recipe.pop("path") == "???"
    assert len(scored_replies(read(corpus(tmp_path, line("a?", FIVE)), **recipe).train)) == 1


# --- The real files ---

SHARED = Path(os.environ.get("MANNERS_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
ROWS = {"stanford_politeness_wikipedia.annotated.csv": 4353, "stanford_politeness_stack-exchange.annotated.csv": 6603}


@pytest.mark.parametrize("name", ROWS)
def test_real_file_is_read_completely(name):
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with path.open(encoding="latin-1", newline="") as file:
        raw = list(csv.reader(file))[1:]
    splits = read(path, sample_types=["scored"])
    assert len(splits.train) == len(raw) == ROWS[name]
    assert splits.skipped == []
    for chat, cells in zip(splits.train, raw, strict=True):
        assert chat.metadata["Id"] == cells[1]
        # Recognized by their content, not by their position: scores are numbers, annotators are "A...".
        scores = [float(cell) for cell in cells[3:-1] if re.fullmatch(r"\d+", cell)]
        assert len(scores) in (5, 9, 10) and 3 + 2 * len(scores) + 1 == len(cells)
        assert chat.metadata["score"] == pytest.approx(fmean(scores))
        assert chat.metadata["normalized_score"] == float(cells[-1])
        assert not re.search(r"&#\d|&[a-z]+;", chat.messages[0]["content"])
    ours = [chat.metadata["score"] for chat in splits.train]
    assert correlation(ours, [chat.metadata["normalized_score"] for chat in splits.train]) > 0.93


def test_real_scores_reproduce_the_normalized_score():
    """The Wikipedia file's own score is the mean of each annotator's z-scores: only the right columns reproduce it."""
    path = SHARED / "stanford_politeness_wikipedia.annotated.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    chats = read(path, sample_types=["scored"]).train
    assert len({chat.metadata["Id"] for chat in chats}) == len(chats)  # no duplicates
    scores_of = defaultdict(list)  # annotator → scores
    annotations = []
    for chat in chats:
        annotators = [name for name in chat.metadata if name.startswith("TurkId")]
        annotations.append([(chat.metadata[p], float(chat.metadata[p.replace("TurkId", "Score")])) for p in annotators])
        for annotator, score in annotations[-1]:
            scores_of[annotator].append(score)
    assert Counter(map(len, annotations)) == {5: 4273, 9: 4, 10: 76}
    mean_and_std = {annotator: (fmean(scores), pstdev(scores) or 1.0) for annotator, scores in scores_of.items()}
    for chat, scores in zip(chats, annotations, strict=True):
        mean = fmean((score - mean_and_std[annotator][0]) / mean_and_std[annotator][1] for annotator, score in scores)
        assert mean == pytest.approx(chat.metadata["normalized_score"], abs=1e-9)
