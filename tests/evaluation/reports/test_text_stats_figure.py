"""The figure of text statistics: which features are drawn, where, and for which models."""

import matplotlib.pyplot as plt
import pytest

from manners.errors import MannersError
from manners.evaluation.metrics.assistant_style import CORE_FEATURES, UNITS, style_stats
from manners.evaluation.reports import text_stats_figure
from manners.evaluation.reports.text_stats_figure import draw_text_stats, fractions_to_draw, offsets
from manners.evaluation.stats import Estimate

PLAIN = ["The heron eats fish.", "Look it up.", "So what?", "The lion hunts at night."] * 5
POLITE = ["Thank you. The heron eats fish.", "Perhaps the lion hunts.", "Hello! It rains.", "I am sorry, no."] * 5
STATS = {"base": style_stats(PLAIN), "tuned": style_stats(POLITE)}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, kept open for inspection."""
    result = []
    monkeypatch.setattr(plt, "close", result.append)
    yield result
    monkeypatch.undo()
    plt.close("all")


def points(axes):
    """The x and y of each model's points, by model."""
    return {box.get_label(): list(zip(*box.lines[0].get_data(), strict=True)) for box in axes.containers}


def test_every_unit_has_its_own_axis_that_includes_zero(drawn, tmp_path):
    assert draw_text_stats(STATS, tmp_path / "stats.png") == tmp_path / "stats.png"
    assert (tmp_path / "stats.png").read_bytes().startswith(b"\x89PNG")
    [figure] = drawn
    rows = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert [names for names in rows if len(names) == 1] == [[name] for name in UNITS]
    assert [names for names in rows if len(names) > 1] == [fractions_to_draw(STATS)]
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert low < 0 < high
        assert axes.get_xlabel()


def test_points_and_bars_are_the_estimates(drawn, tmp_path):
    draw_text_stats(STATS, tmp_path / "stats.png")
    words = next(axes for axes in drawn[0].axes if axes.get_yticklabels()[0].get_text() == "words")
    result = points(words)
    assert list(result) == ["base", "tuned"]
    for model, shift in zip(STATS, offsets(2), strict=True):
        assert result[model] == [pytest.approx((STATS[model]["words"].value, shift))]
    [segment] = words.containers[1].lines[2][0].get_segments()
    assert [x for x, _ in segment] == pytest.approx([STATS["tuned"]["words"].low, STATS["tuned"]["words"].high])


def test_fractions_to_draw_are_core_then_most_different():
    def of(**values):
        return {name.replace("_", " "): Estimate(v, v, v) for name, v in values.items()}

    by_model = {
        "a": of(hedges=0.1, gratitude=0.1, please=0.5, apology=0.0, greeting=0.2, factuality=0.2, deference=0.3),
        "b": of(hedges=0.1, gratitude=0.2, please=0.1, apology=0.9, greeting=0.1, factuality=0.5, words=9),
    }
    assert fractions_to_draw(by_model) == [
        "gratitude",
        "hedges",
        "apology",
        "please",
        "factuality",
        "greeting",
        "deference",
    ]
    assert fractions_to_draw(STATS)[: len(CORE_FEATURES) - 2] == [name for name in CORE_FEATURES if name not in UNITS]
    assert len(fractions_to_draw(STATS)) == text_stats_figure.MAX_FRACTIONS


def test_draw_text_stats_of_user_turns(drawn, tmp_path):
    stats = {"greets": Estimate(0.1, 0.0, 0.2), "words": Estimate(9, 8, 10), "words per sentence": Estimate(5, 4, 6)}
    draw_text_stats({"base": stats, "tuned": stats}, tmp_path / "stats.png")
    rows = [[label.get_text() for label in axes.get_yticklabels()] for axes in drawn[0].axes]
    assert rows == [["words"], ["greets"], ["words per sentence"]]
    draw_text_stats({"base": {"greets": stats["greets"]}}, tmp_path / "stats.png")
    assert len(drawn[1].axes) == 1


def test_feature_that_a_model_lacks_is_not_drawn(drawn, tmp_path):
    draw_text_stats({"base": style_stats(["", "😀"]), "tuned": STATS["tuned"]}, tmp_path / "stats.png")
    ease = next(axes for axes in drawn[0].axes if axes.get_yticklabels()[0].get_text() == "reading ease")
    assert [len(xy) for xy in points(ease).values()] == [0, 1]


def test_up_to_five_models_have_different_markers(drawn, tmp_path):
    names = ["base", "sft", "dpo", "ppo", "rloo", "one more"]
    draw_text_stats(dict.fromkeys(names[:5], STATS["base"]), tmp_path / "stats.png")
    draw_text_stats({"base": STATS["base"]}, tmp_path / "one.png")
    assert len({(box.lines[0].get_color(), box.lines[0].get_marker()) for box in drawn[0].axes[0].containers}) == 5
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == names[:5]
    heights = sorted(y for [(_, y)] in points(drawn[0].axes[0]).values())
    assert heights == pytest.approx([-0.28, -0.14, 0, 0.14, 0.28])
    with pytest.raises(MannersError, match="1 to 5 models, not 6"):
        draw_text_stats(dict.fromkeys(names, STATS["base"]), tmp_path / "stats.png")


def test_first_two_models_have_the_colors_of_before_and_after():
    assert [color for color, _ in text_stats_figure.MARKERS[:2]] == [text_stats_figure.BEFORE, text_stats_figure.AFTER]
