"""Tables of several models."""

from manners.evaluation.evaluate import Generation
from manners.evaluation.reports import side_by_side
from manners.evaluation.reports.side_by_side import ModelResult
from manners.evaluation.stats import Estimate


def results():
    generation = Generation("a | b", "[red]no[/red] | yes", has_eos=True)
    estimates = {"x": Estimate(0.5, 0.4, 0.6)}
    return [ModelResult(name, [generation], [generation], estimates) for name in ("one", "two")]


def test_replies_table_escapes_bars_and_keeps_brackets():
    row = r"| a \| b | [red]no[/red] \| yes | [red]no[/red] \| yes |"
    assert row in side_by_side.replies_table(results()).markdown()


def test_comparison_table_has_a_column_for_each_model():
    table = side_by_side.comparison_table(results(), {})
    assert table.header == ["metric", "one", "two", "in the data"]
    assert table.rows == [["x", "0.500 [0.400, 0.600]", "0.500 [0.400, 0.600]", ""]]
