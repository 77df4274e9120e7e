"""The page and the tables over a store with known numbers."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from manners.errors import MannersError
from manners.report import curves, page, query, sections, tables
from manners.report.__main__ import main
from manners.report.configurations import configuration_label, differing
from manners.report.statistics import over_seeds
from tests.report import stores

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return stores.make(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def studies(uri):
    client = query.connect_store(uri)
    return sections.build_studies(client, query.query_runs(client))


@pytest.fixture(scope="module")
def report(studies, tmp_path_factory):
    """The page's file."""
    return page.write_report_files(studies, "the store", tmp_path_factory.mktemp("report"))[0]


def test_students_interval_of_three_seeds_is_the_one_worked_out_by_hand():
    """Mean 2, s = 1, t(0.975; 2) = 4.302653 (any table), half-width 4.302653 / √3 = 2.484138."""
    e = over_seeds([1.0, 2.0, 3.0])
    assert (e.value, e.low, e.high) == pytest.approx((2.0, -0.484138, 4.484138), abs=1e-6)
    e = over_seeds([1.0, 2.0])  # s = √0.5, t(0.975; 1) = 12.706205: half-width 6.353102
    assert (e.low, e.high) == pytest.approx((-4.853102, 7.853102), abs=1e-6)


def test_one_seed_has_no_interval_and_equal_seeds_have_none_to_speak_of():
    assert np.isnan(over_seeds([0.3]).low) and over_seeds([0.3]).value == 0.3
    assert over_seeds([0.1] * 3).low == over_seeds([0.1] * 3).high
    assert tables.format_number(over_seeds([0.1] * 3), "words") == "0.100"
    assert tables.format_number(over_seeds([-0.00001]), "words") == "0.000"


def test_a_row_is_a_configuration_with_its_seeds_folded(studies):
    (rest,) = studies[0].parts
    table = rest.groups[0].table
    assert table.header == ["configuration", "n", "manner fits", "held-out loss", "time", "tokens", "peak memory"]
    # before: 0.4, 0.5, 0.3; after: 0.6, 0.7, 0.8; both have s = 0.1 and so a half-width of 0.2484
    three = "40.0 % [15.2, 64.8] → 70.0 % [45.2, 94.8]"
    assert table.rows == [
        ["learning_rate=0.1", "3", three, "2.000 → 1.000", "4 min 20 s", "1.5 k", "1.25 GB"],
        ["learning_rate=0.2", "1", "40.0 % → 90.0 %", "–", "–", "–", "–"],
    ]
    assert rest.groups[0].repeats == ["alpha-1-old"]


def test_the_table_by_seed_has_the_gain_of_each_seed_not_of_the_means(studies):
    """Gains 0.2, 0.2, 0.5: mean 0.3, s = 0.173205, half-width 4.302653 · 0.173205 / √3 = 0.430265."""
    slow, fast = studies[0].parts[0].groups[0].details
    assert slow.by_seed.header == ["measure", "seed 1", "seed 2", "seed 10", "mean", "gain"]
    fits, loss, words = slow.by_seed.rows
    assert fits[1:4] == ["40.0 % → 60.0 %", "50.0 % → 70.0 %", "30.0 % → 80.0 %"]
    assert fits[-1] == "+30.0 points [-13.0, +73.0]"
    assert loss[-2:] == ["2.000 → 1.000", "-1.000"]
    assert words == ["words", "1.000", "2.000", "3.000", "2.000 [-0.484, 4.484]", "–"]
    assert fast.by_seed.rows == [["manner fits", "40.0 % → 90.0 %"]]
    assert slow.lineage == [f"base\n └→ alpha-{seed}" for seed in (1, 2, 10)]


def test_what_did_not_finish_is_listed_with_its_error(studies):
    assert studies[0].unfinished.rows == [
        ["alpha-failed", "failed", f"ValueError: {stores.HOSTILE}"],
        ["alpha-stopped", "stopped", "–"],
        ["alpha-running", "running, or killed", "–"],
    ]
    assert (studies[0].runs, studies[0].cost) == (9, ["13 min 0 s", "4.5 k tokens"])


def test_a_sweep_stands_above_its_children(studies):
    (part,) = studies[1].parts
    assert (part.sweep, part.picture) == ("rates", stores.PIXEL)
    assert "<td><strong>50 %</strong></td>" in part.document and "<code>python train.py rate=0.1" in part.document
    assert [row[0] for row in part.groups[0].table.rows] == ["learning_rate=0.1", "learning_rate=0.2"]
    assert studies[1].runs == 2


def test_only_what_differs_is_a_label_and_the_data_or_a_newer_option_only_where_nothing_else_tells():
    shapes = [{"a.r": "1", "b.r": "1", "c": "1", "data": "x"}, {"a.r": "2", "b.r": "1", "data": "y"}]
    assert differing(shapes) == ["a.r"]
    assert differing([*shapes, {"a.r": "2", "b.r": "1", "data": "x"}]) == ["a.r", "c", "data"]
    assert differing([{"a": "1", "data": "x"}, {"a": "1", "c": "1", "data": "x"}]) == ["c"]
    assert [configuration_label(s, ["a.r", "c", "data"]) for s in shapes] == ["r=1  c=1  data=x", "r=2  c=–  data=y"]
    assert (
        configuration_label({"a.r": "1", "b.r": "2", "model.name": "t"}, ["a.r", "b.r", "model.name"])
        == "a.r=1  b.r=2  model=t"
    )


def test_a_curve_lies_where_its_numbers_do_and_the_mean_leaves_no_seed_out(studies):
    drawn = studies[0].parts[0].groups[0].chart
    slow, fast = drawn.lines
    assert (slow.label, fast.label, fast.seeds) == ("learning_rate=0.1", "learning_rate=0.2", [])
    assert len(slow.seeds) == 3 and len(slow.dots) == 2
    (x10, y2), (x20, same) = slow.dots
    assert y2 == same  # their mean is 2 at both steps
    assert (x10 - curves.LEFT) / (x20 - curves.LEFT) == pytest.approx(0.5, abs=0.01)
    at = {text: place for place, text in drawn.y_ticks}
    assert y2 == pytest.approx(at["2"]) and fast.dots[1][1] == pytest.approx(at["0.5"])
    assert curves.mean_curve([[(1, 2.0), (2, 4.0)], [(1, 4.0)]]) == [(1, 3.0)]
    assert curves.learning_chart("loss", {"a": [[(1, 2.0)]]}) is None


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.said = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.said.append(data)


def test_the_page_loads_nothing_and_what_runs_say_stays_text(report):
    text = report.read_text()
    read = Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(read.tags)
    sources = [value for name, value in read.attributes if name in ("src", "href", "xlink:href", "action", "srcset")]
    assert sources and all(value.startswith(("#study", "data:image/png;base64,")) for value in sources)
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert not re.findall(r"url\(|@import", text)
    said = "".join(read.said)
    assert said.count(stores.HOSTILE) >= 4  # a study's name, an error, a reply, and what follows a sweep's table
    assert "[a](https://huggingface.co/a) ![b](https://huggingface.co/b.png) *stars* `ticks` &lt; | b" in said


@pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed")
def test_a_browser_shows_the_tables_and_runs_nothing_of_what_the_runs_said(report, tmp_path):
    def browse(*what):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [CHROMIUM, *flags, "--window-size=1200,1600", *what, report.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout

    read = Page(browse("--dump-dom"))
    assert "taken over" not in read.said[read.said.index("Manners: report")]
    assert read.tags.count("polyline") == 3 + 2  # three seeds; two means
    import matplotlib.image

    browse(f"--screenshot={tmp_path / 'seen.png'}")
    seen = matplotlib.image.imread(tmp_path / "seen.png")[..., :3]
    paper = seen[0, 0]
    ink = (np.abs(seen - paper).max(-1) > 0.25).mean()
    assert 0.005 < ink < 0.3  # neither blank nor covered
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    assert (np.abs(seen - blue).max(-1) < 0.02).sum() > 300  # the first curve


def test_the_command_writes_both_files_for_one_study(uri, tmp_path, capsys):
    main(["--uri", uri, "--out", str(tmp_path), "--study", "alpha"])
    assert f"9 runs, 3 of them not finished: {tmp_path}/index.html" in capsys.readouterr().out
    text = (tmp_path / "tables.md").read_text()
    assert "| learning_rate=0.2 | 1 | 40.0 % → 90.0 % | – | – | – | – |" in text
    assert "| alpha-stopped | stopped | – |" in text
    assert "beta" not in text + (tmp_path / "index.html").read_text()


def test_a_store_that_is_not_there_and_a_study_that_it_lacks_are_answered_in_a_sentence(uri, tmp_path):
    with pytest.raises(SystemExit, match=r"error: --uri sqlite:///none.db: there are no runs yet. Train one"):
        main(["--uri", "sqlite:///none.db", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"--study alfa: the store has no such study. Did you mean 'alpha'\?"):
        main(["--uri", uri, "--out", str(tmp_path), "--study", "alfa"])
    (tmp_path / "broken.db").write_text("no database")
    with pytest.raises(MannersError, match="this store cannot be read"):
        query.connect_store(f"sqlite:///{tmp_path / 'broken.db'}")
    (tmp_path / "taken").write_text("")
    with pytest.raises(SystemExit, match="it cannot be written"):
        main(["--uri", uri, "--out", str(tmp_path / "taken"), "--study", "alpha"])
