"""The report on a reward model, and its figures."""

import itertools
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from manners.data.types import PreferencePair, ScoredReply
from manners.evaluation.metrics.reward_quality import pairwise_quality, regression_quality
from manners.evaluation.metrics.reward_sanity import check_sanity
from manners.evaluation.reports import reward_figures
from manners.evaluation.reports.reward_report import (
    reward_markdown,
    reward_numbers,
    show_reward_report,
    worst_errors,
    worst_pairs,
)

HISTORY = [{"role": "user", "content": "First."}, {"role": "assistant", "content": "Yes."}]
PROMPT = [*HISTORY, {"role": "user", "content": "What | now?"}]
REPLIES = [ScoredReply(PROMPT, f"This is reply number {i}, of some words.", i / 10) for i in range(11)]
PREDICTED = [
    0.1,
    0.1,
    0.2,
    0.3,
    0.4,
    0.95,
    0.6,
    0.7,
    0.8,
    0.3,
    1.0,
]  # errors: 0.1 in row 0, 0.45 in row 5, -0.6 in row 9


@pytest.fixture
def quality():
    return regression_quality(PREDICTED, [r.score for r in REPLIES], [0] * 5 + [1] * 6, lengths=range(11), mean=0.5)


@pytest.fixture
def sanity():
    return check_sanity(lambda replies: [float(len(reply)) for _, reply in replies], REPLIES, REPLIES, seed=1)


def test_worst_errors_are_sorted_by_magnitude():
    result = worst_errors(REPLIES, PREDICTED, count=3)
    assert [(r["true"], r["predicted"]) for r in result] == [("0.90", "0.30"), ("0.50", "0.95"), ("0.00", "0.10")]
    assert result[0]["prompt"] == "What | now?"
    assert result[0]["reply"] == "This is reply number 9, of some words."
    assert len(worst_errors(REPLIES, PREDICTED)) == 5
    assert worst_errors([ScoredReply([], "Plain.", 1.0)], [0.5])[0]["prompt"] == "–"


def test_worst_pairs_are_ordered_incorrectly():
    pairs = [PreferencePair(PROMPT, f"good {i}", f"bad {i}") for i in range(4)]
    result = worst_pairs(pairs, [1.0, 0.0, 2.0, 1.0], [0.0, 0.5, 5.0, 1.0])
    assert [(r["chosen"], r["scores"]) for r in result] == [
        ("good 2", "2.00 < 5.00"),
        ("good 1", "0.00 < 0.50"),
        ("good 3", "1.00, both"),
    ]


def test_reward_numbers_of_model_and_baseline(quality):
    table = {name: (baseline, model) for name, baseline, model in reward_numbers(quality)}
    # squares of the errors 0.1, 0.45, -0.6 sum to 0.5725; of 0.5 from 0, 0.1, … 1, to 1.1; over 11 rows each
    baseline, model = table["mean squared error"]
    assert model.startswith(f"{0.5725 / 11:.3f} [")
    assert baseline.startswith("0.100 [")
    assert table["R²"][1].startswith(f"{1 - 0.5725 / 1.1:.3f} [")
    assert table["R²"][0].startswith("0.000 [")  # the training mean equals the held-out mean
    assert table["Spearman correlation"][0] == "–"
    # One of the first prompt's ten pairs is a tie. Of the second's fifteen, the first reply scores above four better
    # ones, and the last but one also below three worse ones: (9.5 + 8) / 25.
    baseline, model = table["pair accuracy"]
    assert baseline == "50.0 %"
    assert model.startswith("70.0 % [")
    assert len(table) == 7


def test_reward_numbers_of_pairs():
    (name, baseline, model), margin = reward_numbers(pairwise_quality([1, 2, 3, 1], [0, 0, 1, 2]))
    assert (name, baseline) == ("pair accuracy", "50.0 %")
    assert model.startswith("75.0 % [")
    assert margin[2].startswith("1.000 [")


def test_reward_numbers_leave_out_what_was_not_measured():
    names = [name for name, _, _ in reward_numbers(regression_quality([1, 2, 4], [1, 2, 3]))]
    assert "pair accuracy" not in names
    assert "Spearman correlation of error and length" not in names
    assert reward_numbers(regression_quality([1, 1], [1, 2]))[3] == ("Pearson correlation", "–", "–")


def test_reward_markdown_has_three_tables_and_escapes_bars(quality, sanity):
    text = reward_markdown("strictbot", quality, sanity, worst_errors(REPLIES, PREDICTED))
    assert text.startswith("# strictbot\n")
    widths = [line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")]
    assert widths == [4] * 9 + [5] * 12 + [5] * 7  # 2 lines of header each; 7 metrics, all and 9 corruptions, 5 errors
    assert "What \\| now?" in text
    assert "11 held-out replies, 25 pairs of them, for 2 prompts" in text
    minimal = reward_markdown("strictbot", pairwise_quality([1, 2], [0, 1]), None, [])
    assert "## " not in minimal
    assert "2 held-out pairs for 2 prompts" in minimal


def test_show_reward_report_prints_the_same_numbers(quality, sanity, capsys):
    show_reward_report(Console(width=160), quality, sanity, worst_errors(REPLIES, PREDICTED))
    output = capsys.readouterr().out
    for _, baseline, model in reward_numbers(quality):
        assert baseline in output and model in output
    assert sanity.accuracy.percent() in output
    assert "This is reply number 9" in output


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, kept open for inspection."""
    kept, close = [], plt.close
    monkeypatch.setattr(plt, "close", kept.append)
    yield kept
    for figure in kept:
        close(figure)


def assert_readable(figure, file):
    """All text is within the figure, and no tick labels of an axis overlap."""
    assert file.stat().st_size > 5000
    figure.canvas.draw()  # at the dpi of the screen, which differs from that of the file
    renderer = figure.canvas.get_renderer()
    bounds = figure.bbox
    texts = [t for t in figure.findobj(plt.Text) if t.get_visible() and t.get_text().strip()]
    ticks = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
            ticks += [labels]
            hidden = [t.label1 for t in axis.get_major_ticks() if not low <= t.get_loc() <= high]
            texts = [t for t in texts if t not in hidden]  # ticks beyond the ends exist, but are not drawn
    assert len(texts) > 10
    for text in texts:
        box = text.get_window_extent(renderer)
        inside = bounds.x0 <= box.x0 and box.x1 <= bounds.x1 and bounds.y0 <= box.y0 and box.y1 <= bounds.y1
        assert inside, f"{text.get_text()!r} is clipped"
    for labels in ticks:
        boxes = [t.get_window_extent(renderer) for t in labels if t.get_visible() and t.get_text()]
        for one, other in itertools.pairwise(boxes):
            assert not one.overlaps(other)


def predictions(levels, unit):
    rng = np.random.default_rng(0)
    true = rng.choice(levels, 400) if levels else rng.uniform(1, 25, 400)
    return 0.6 * true + 0.2 * unit + rng.normal(0, 0.2 * unit, 400), true


@pytest.mark.parametrize("levels, unit", [([0, 0.1, 0.3, 0.4, 1], 1), ([], 10)], ids=["few scores", "many scores"])
def test_scatter_and_calibration_figures_are_readable(levels, unit, tmp_path, drawn):
    predicted, true = predictions(levels, unit)
    name = "politeness (mean of five people, 1 to 25)"
    for file in (
        reward_figures.score_scatter(predicted, true, tmp_path / "scatter.png", name),
        reward_figures.calibration_figure(
            regression_quality(predicted, true), predicted, tmp_path / "calibration.png", name
        ),
    ):
        assert_readable(drawn[-1], file)
    strips, below = drawn[0].axes[0], drawn[1].axes[1]
    assert strips.get_xlabel().startswith(f"true {name}")
    assert len(strips.get_xticks()) == 5 or not levels
    assert "(" in strips.get_xticklabels()[0].get_text() or not levels
    assert sum(bar.get_height() for bar in below.patches) == 400


def test_strip_offsets_stay_within_the_strip():
    predicted, true = predictions([0, 0.1, 0.3], 1)
    offsets = reward_figures.strip_offsets(predicted, true)
    assert np.abs(offsets).max() <= 1
    assert offsets.std() > 0.1
    is_dense = np.abs(predicted - np.median(predicted)) < 0.1
    assert (
        np.abs(offsets[is_dense]).max() > np.abs(offsets[np.argsort(predicted)[:5]]).max()
    )  # wide where points are dense
    assert (reward_figures.strip_offsets(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == 0).all()


def test_figures_of_constant_predictions(tmp_path):
    """These figures must show a model that predicts the same for every reply."""
    constant, true = np.full(40, 0.5), np.repeat([0.0, 1.0], 20)
    assert reward_figures.score_scatter(constant, true, tmp_path / "a.png").exists()
    assert reward_figures.calibration_figure(regression_quality(constant, true), constant, tmp_path / "b.png").exists()
    assert reward_figures.score_scatter(constant, np.ones(40), tmp_path / "c.png").exists()


def write_metrics(file, keys, steps=60):
    records = [{"step": i} | dict.fromkeys(keys, i * 0.01 + 1) for i in range(1, steps + 1)]
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    return file


ALL_METRICS = [name for training, held_out, _ in reward_figures.ONLINE_PANELS for name in (training, held_out) if name]


def test_online_curves_are_readable(tmp_path, drawn):
    file = reward_figures.online_curves(
        write_metrics(tmp_path / "metrics.jsonl", ALL_METRICS), 40, tmp_path / "online.png"
    )
    assert_readable(drawn[0], file)
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == [
        title for _, _, title in reward_figures.ONLINE_PANELS
    ]
    assert [t.get_text() for t in drawn[0].legends[0].get_texts()] == [
        "training, smoothed",
        "held-out, sampled",
        "best: iteration 40",
    ]
    for axes in drawn[0].axes:
        assert 40 in [line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() == ":"]


def test_online_curves_leave_out_what_was_not_logged(tmp_path, drawn):
    file = write_metrics(
        tmp_path / "metrics.jsonl", ["objective/scores", "objective/kl", "policy/entropy_avg", "eval/length"], 4
    )
    result = reward_figures.online_curves(file, 2, tmp_path / "online.png")
    assert_readable(drawn[0], result)
    assert len(drawn[0].axes) == 4
    assert reward_figures.online_curves(write_metrics(file, ["train/loss"]), 2, tmp_path / "none.png") is None


def test_smoothed_curve_does_not_lag(tmp_path, drawn):
    reward_figures.online_curves(
        write_metrics(tmp_path / "metrics.jsonl", ["objective/scores", "eval/scores"]), 1, tmp_path / "online.png"
    )
    assert_readable(drawn[0], tmp_path / "online.png")  # a single panel has room for the legend
    raw, smoothed, *_ = drawn[0].axes[0].get_lines()
    inner = slice(5, -5)
    assert smoothed.get_ydata()[inner] == pytest.approx(raw.get_ydata()[inner], abs=1e-3)


def test_metric_series_keeps_the_later_value_of_a_step():
    records = [{"step": 2, "a": 1.0}, {"step": 1, "a": 0.0}, {"step": 2, "a": 5.0}, {"step": 3, "b": 1.0}]
    assert list(reward_figures.metric_series(records, "a").items()) == [(1, 0.0), (2, 5.0)]


def test_worst_errors_name_the_words_that_were_paid_for():
    def score(replies):
        return [2.0 * text.count("very") for _, text in replies]

    [record] = worst_errors([ScoredReply([], "It is very round.", 0.0)], [2.0], score)
    assert "very +2.00" in record["words that earned or lost it"]
    assert "round. +0.00" in record["words that earned or lost it"]
    [pair] = worst_pairs([PreferencePair([], "Round.", "A very flat one.")], [0.0], [2.0], score)
    assert "very +2.00" in pair["words that earned or lost it"]
