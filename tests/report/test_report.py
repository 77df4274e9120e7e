"""The HTML page and the tables over a store with known numbers."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import mlflow
import numpy as np
import pytest

from manners.errors import MannersError
from manners.report import curves, page, query, sections, tables
from manners.report.__main__ import report_command
from manners.report.configurations import configuration_key, configuration_label, differing_params
from manners.report.tables import mean_over_seeds
from tests import stores as tracking_stores
from tests.report import stores

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return stores.make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def studies(uri):
    client = query.connect_store(uri)
    return sections.build_studies(client, query.query_runs(client))


@pytest.fixture(scope="module")
def report(studies, tmp_path_factory):
    """Path of the page."""
    return page.write_report_files(studies, "sqlite:///store.db", tmp_path_factory.mktemp("report"))[0]


def test_mean_over_seeds_matches_hand_computed_student_interval():
    """Mean 2, s = 1, t(0.975; 2) = 4.302653 (any table), half-width 4.302653 / √3 = 2.484138."""
    e = mean_over_seeds([1.0, 2.0, 3.0])
    assert (e.value, e.low, e.high) == pytest.approx((2.0, -0.484138, 4.484138), abs=1e-6)
    e = mean_over_seeds([1.0, 2.0])  # s = √0.5, t(0.975; 1) = 12.706205: half-width 6.353102
    assert (e.low, e.high) == pytest.approx((-4.853102, 7.853102), abs=1e-6)


def test_runs_that_hold_traces_are_left_out(tmp_path):
    client = mlflow.MlflowClient(tracking_stores.absolute_uri(f"sqlite:///{tmp_path}/mlflow.db"))
    experiment = client.create_experiment("e")
    parent = client.create_run(experiment, tags={"manners.method": "evaluate"}).info.run_id
    client.create_run(experiment, tags={"mlflow.parentRunId": parent, "mlflow.runType": "genai_evaluate"})
    assert [run.id for run in query.query_runs(client)] == [parent]


def test_one_seed_or_equal_values_are_shown_without_interval():
    assert np.isnan(mean_over_seeds([0.3]).low) and mean_over_seeds([0.3]).value == 0.3
    assert mean_over_seeds([0.1] * 3).low == mean_over_seeds([0.1] * 3).high
    assert tables.format_estimate(mean_over_seeds([0.1] * 3), "words") == "0.100"
    assert tables.format_estimate(mean_over_seeds([-0.00001]), "words") == "0.000"


def test_configuration_table_has_means_over_seeds(studies):
    (section,) = studies[0].sections
    table = section.groups[0].table
    assert table.header == ["configuration", "n", "style accuracy", "held-out loss", "time", "tokens", "peak memory"]
    # before: 0.4, 0.5, 0.3; after: 0.6, 0.7, 0.8; both have s = 0.1, hence a half-width of 0.2484
    accuracy = "40.0 % [15.2, 64.8] → 70.0 % [45.2, 94.8]"
    assert table.rows == [
        ["learning_rate=0.1", "3", accuracy, "2.000 → 1.000", "4 min 20 s", "1.5 k", "1.25 GB"],
        ["learning_rate=0.2", "1", "40.0 % → 90.0 %", "–", "–", "–", "–"],
    ]
    assert section.groups[0].repeats == ["alpha-1-old"]


def test_seed_table_gain_is_the_mean_of_paired_differences(studies):
    """Gains 0.2, 0.2, 0.5: mean 0.3, s = 0.173205, half-width 4.302653 · 0.173205 / √3 = 0.430265."""
    slow, fast = studies[0].sections[0].groups[0].details
    assert slow.by_seed.header == ["metric", "seed 1", "seed 2", "seed 10", "mean", "gain"]
    accuracy, loss, words = slow.by_seed.rows
    assert accuracy[1:4] == ["40.0 % → 60.0 %", "50.0 % → 70.0 %", "30.0 % → 80.0 %"]
    assert accuracy[-1] == "+30.0 points [-13.0, +73.0]"
    assert loss[-2:] == ["2.000 → 1.000", "-1.000"]
    assert words == ["words", "1.000", "2.000", "3.000", "2.000 [-0.484, 4.484]", "–"]
    assert fast.by_seed.rows == [["style accuracy", "40.0 % → 90.0 %"]]
    assert slow.lineages == [f"base\n └→ alpha-{seed}" for seed in (1, 2, 10)]


def test_unfinished_runs_are_listed_with_their_errors(studies):
    assert studies[0].unfinished.rows == [
        ["alpha-failed", "failed", f"ValueError: {stores.HOSTILE}"],
        ["alpha-stopped", "stopped", "–"],
        ["alpha-running", "running, or killed", "–"],
    ]
    assert (studies[0].runs, studies[0].cost) == (9, ["13 min 0 s", "4.5 k tokens"])


def test_sweep_section_has_the_parent_report_and_child_runs(studies):
    (section,) = studies[1].sections
    assert (section.sweep, section.figure) == ("rates", stores.PIXEL)
    assert "<td><strong>50 %</strong></td>" in section.report and "<code>python train.py rate=0.1" in section.report
    assert [row[0] for row in section.groups[0].table.rows] == ["learning_rate=0.1", "learning_rate=0.2"]
    assert studies[1].runs == 2


def test_labels_show_differing_params_and_data_only_if_needed():
    keys = [{"a.r": "1", "b.r": "1", "c": "1", "data": "x"}, {"a.r": "2", "b.r": "1", "data": "y"}]
    assert differing_params(keys) == ["a.r"]
    assert differing_params([*keys, {"a.r": "2", "b.r": "1", "data": "x"}]) == ["a.r", "c", "data"]
    assert differing_params([{"a": "1", "data": "x"}, {"a": "1", "c": "1", "data": "x"}]) == ["c"]
    assert [configuration_label(k, ["a.r", "c", "data"]) for k in keys] == ["r=1  c=1  data=x", "r=2  c=–  data=y"]
    assert (
        configuration_label({"a.r": "1", "b.r": "2", "model.name": "t"}, ["a.r", "b.r", "model.name"])
        == "a.r=1  b.r=2  model=t"
    )


def test_configuration_key_has_the_sources_of_policy_and_reward():
    params = {"method.sample_type": "prompt", "seed": "1", "policy_from": "a", "reward_run_overrides.0": "x=1"}
    run = query.Run("id", "name", "study", "FINISHED", 0, params | {"output_dir": "outputs"}, {}, {})
    assert configuration_key(run) == {name: value for name, value in params.items() if name != "seed"}


def test_learning_chart_places_means_on_the_axes(studies):
    chart = studies[0].sections[0].groups[0].chart
    slow, fast = chart.lines
    assert (slow.label, fast.label, fast.seeds) == ("learning_rate=0.1", "learning_rate=0.2", [])
    assert len(slow.seeds) == 3 and len(slow.dots) == 2
    (x10, y10), (x20, y20) = slow.dots
    assert y10 == y20  # the mean is 2 at both steps
    assert (x10 - curves.LEFT) / (x20 - curves.LEFT) == pytest.approx(0.5, abs=0.01)
    tick_y = {text: y for y, text in chart.y_ticks}
    assert y10 == pytest.approx(tick_y["2"]) and fast.dots[1][1] == pytest.approx(tick_y["0.5"])
    assert curves.mean_curve([[(1, 2.0), (2, 4.0)], [(1, 4.0)]]) == [(1, 3.0)]
    assert curves.learning_chart("loss", {"a": [[(1, 2.0)]]}) is None


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def test_page_loads_nothing_and_escapes_text_of_runs(report):
    html = report.read_text()
    parsed = Page(html)
    assert not {"script", "link", "iframe", "object", "base"} & set(parsed.tags)
    sources = [value for name, value in parsed.attributes if name in ("src", "href", "xlink:href", "action", "srcset")]
    assert sources and all(value.startswith(("#study", "data:image/png;base64,")) for value in sources)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert not re.findall(r"url\(|@import", html)
    text = "".join(parsed.texts)
    assert text.count(stores.HOSTILE) >= 4  # the name of a study, an error, a reply, and a sweep's report
    assert "[a](https://huggingface.co/a) ![b](https://huggingface.co/b.png) *stars* `ticks` &lt; | b" in text


@pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed")
def test_browser_renders_the_page_without_running_scripts(report, tmp_path):
    def browse(*options):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [CHROMIUM, *flags, "--window-size=1200,1600", *options, report.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout

    parsed = Page(browse("--dump-dom"))
    assert "Manners: report" in parsed.texts and "taken over" not in parsed.texts  # a script would change the title
    assert parsed.tags.count("polyline") == 3 + 2  # three seeds and two means
    import matplotlib.image

    browse(f"--screenshot={tmp_path / 'page.png'}")
    image = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    background = image[0, 0]
    drawn = (np.abs(image - background).max(-1) > 0.25).mean()
    assert 0.005 < drawn < 0.3  # neither blank nor covered
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    assert (np.abs(image - blue).max(-1) < 0.02).sum() > 300  # the first curve


def test_report_command_writes_both_files_for_one_study(uri, tmp_path, capsys):
    report_command(["--uri", uri, "--out", str(tmp_path), "--study", "alpha"])
    assert f"9 runs (3 not finished): wrote {tmp_path}/index.html" in capsys.readouterr().out
    text = (tmp_path / "tables.md").read_text()
    assert "| learning_rate=0.2 | 1 | 40.0 % → 90.0 % | – | – | – | – |" in text
    assert "| alpha-stopped | stopped | – |" in text
    assert "beta" not in text + (tmp_path / "index.html").read_text()


def test_report_command_explains_missing_stores_and_studies(uri, tmp_path):
    with pytest.raises(SystemExit, match=r"error: --uri sqlite:///none.db: there are no runs yet. Train one"):
        report_command(["--uri", "sqlite:///none.db", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"--study alfa: the store has no such study. Did you mean 'alpha'\?"):
        report_command(["--uri", uri, "--out", str(tmp_path), "--study", "alfa"])
    (tmp_path / "broken.db").write_text("no database")
    with pytest.raises(MannersError, match="this store cannot be read"):
        query.connect_store(f"sqlite:///{tmp_path / 'broken.db'}")
    (tmp_path / "taken").write_text("")
    with pytest.raises(SystemExit, match="taken: cannot be written"):
        report_command(["--uri", uri, "--out", str(tmp_path / "taken"), "--study", "alpha"])
