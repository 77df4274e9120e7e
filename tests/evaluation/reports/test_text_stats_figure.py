"""The figure of report cards: what is drawn, where, and of whom."""

import matplotlib.pyplot as plt
import pytest

from manners.errors import MannersError
from manners.evaluation.metrics.assistant_style import SHORT, UNITS, style_stats
from manners.evaluation.reports import text_stats_figure
from manners.evaluation.reports.text_stats_figure import draw_text_stats, offsets, shares_to_draw
from manners.evaluation.stats import Estimate

PLAIN = ["The heron eats fish.", "Look it up.", "So what?", "The lion hunts at night."] * 5
POLITE = ["Thank you. The heron eats fish.", "Perhaps the lion hunts.", "Hello! It rains.", "I am sorry, no."] * 5
CARDS = {"base": style_stats(PLAIN), "tuned": style_stats(POLITE)}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were closed, to look into."""
    found = []
    monkeypatch.setattr(plt, "close", found.append)
    yield found
    monkeypatch.undo()
    plt.close("all")


def dots(axes):
    """Place on the value axis and in the panel of each model's dots, by model."""
    return {box.get_label(): list(zip(*box.lines[0].get_data(), strict=True)) for box in axes.containers}


def test_every_unit_has_its_own_axis_and_all_axes_have_their_zero(drawn, tmp_path):
    assert draw_text_stats(CARDS, tmp_path / "card.png") == tmp_path / "card.png"
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")
    [figure] = drawn
    rows = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert [names for names in rows if len(names) == 1] == [[name] for name in UNITS]
    assert [names for names in rows if len(names) > 1] == [shares_to_draw(CARDS)]
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert low < 0 < high
        assert axes.get_xlabel()


def test_the_dots_are_the_cards_numbers_with_their_intervals(drawn, tmp_path):
    draw_text_stats(CARDS, tmp_path / "card.png")
    words = next(axes for axes in drawn[0].axes if axes.get_yticklabels()[0].get_text() == "words")
    found = dots(words)
    assert list(found) == ["base", "tuned"]
    for model, shift in zip(CARDS, offsets(2), strict=True):
        assert found[model] == [pytest.approx((CARDS[model]["words"].value, shift))]
    [segment] = words.containers[1].lines[2][0].get_segments()
    assert [x for x, _ in segment] == pytest.approx([CARDS["tuned"]["words"].low, CARDS["tuned"]["words"].high])


def test_the_shares_are_the_short_ones_and_then_those_furthest_apart():
    def of(**values):
        return {name.replace("_", " "): Estimate(v, v, v) for name, v in values.items()}

    cards = {
        "a": of(hedges=0.1, gratitude=0.1, please=0.5, apology=0.0, greeting=0.2, factuality=0.2, deference=0.3),
        "b": of(hedges=0.1, gratitude=0.2, please=0.1, apology=0.9, greeting=0.1, factuality=0.5, words=9),
    }
    assert shares_to_draw(cards) == ["gratitude", "hedges", "apology", "please", "factuality", "greeting", "deference"]
    assert shares_to_draw(CARDS)[: len(SHORT) - 2] == [name for name in SHORT if name not in UNITS]
    assert len(shares_to_draw(CARDS)) == 11  # there are 25


def test_a_card_of_turns_is_drawn_too(drawn, tmp_path):
    turns = {"greets": Estimate(0.1, 0.0, 0.2), "words": Estimate(9, 8, 10), "words a sentence": Estimate(5, 4, 6)}
    draw_text_stats({"base": turns, "tuned": turns}, tmp_path / "card.png")
    rows = [[label.get_text() for label in axes.get_yticklabels()] for axes in drawn[0].axes]
    assert rows == [["words"], ["greets"], ["words a sentence"]]
    draw_text_stats({"base": {"greets": turns["greets"]}}, tmp_path / "card.png")
    assert len(drawn[1].axes) == 1


def test_a_number_that_a_model_does_not_have_is_not_drawn(drawn, tmp_path):
    draw_text_stats({"base": style_stats(["", "😀"]), "tuned": CARDS["tuned"]}, tmp_path / "card.png")
    ease = next(axes for axes in drawn[0].axes if axes.get_yticklabels()[0].get_text() == "reading ease")
    assert [len(at) for at in dots(ease).values()] == [0, 1]


def test_up_to_five_models_are_told_apart(drawn, tmp_path):
    names = ["base", "sft", "dpo", "ppo", "rloo", "one more"]
    draw_text_stats(dict.fromkeys(names[:5], CARDS["base"]), tmp_path / "card.png")
    draw_text_stats({"base": CARDS["base"]}, tmp_path / "one.png")
    assert len({(box.lines[0].get_color(), box.lines[0].get_marker()) for box in drawn[0].axes[0].containers}) == 5
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == names[:5]
    heights = sorted(y for [(_, y)] in dots(drawn[0].axes[0]).values())
    assert heights == pytest.approx([-0.28, -0.14, 0, 0.14, 0.28])
    with pytest.raises(MannersError, match="of 1 to 5 models, not of 6"):
        draw_text_stats(dict.fromkeys(names, CARDS["base"]), tmp_path / "card.png")


def test_base_and_tuned_have_the_colours_of_before_and_after():
    assert [color for color, _ in text_stats_figure.STYLES[:2]] == [text_stats_figure.BEFORE, text_stats_figure.AFTER]
