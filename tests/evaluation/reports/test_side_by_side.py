"""Tables of several models."""

import numpy as np

from manners.evaluation.evaluate import Generation
from manners.evaluation.reports import side_by_side
from manners.evaluation.reports.side_by_side import ModelResult
from manners.evaluation.stats import Estimate


def results():
    generation = Generation("a | b", "[red]no[/red] | yes", has_eos=True)
    estimates = {"x": Estimate(0.5, 0.4, 0.6)}
    return [ModelResult(name, [generation], [generation], np.zeros(1), estimates) for name in ("one", "two")]


def test_replies_table_escapes_bars_and_keeps_brackets():
    row = r"| a \| b | [red]no[/red] \| yes | [red]no[/red] \| yes |"
    assert row in side_by_side.replies_table(results()).markdown()


def test_comparison_table_has_a_column_for_each_model():
    table = side_by_side.comparison_table(results(), {})
    assert table.header == ["metric", "one", "two", "in the data"]
    assert table.rows == [["x", "0.500 [0.400, 0.600]", "0.500 [0.400, 0.600]", ""]]


def test_change_of_style_is_paired_over_prompts():
    """Of four prompts one is gained and none lost: 25 points, whatever the others are."""
    columns = {"one": [True, False, False, True], "two": [True, True, False, True], "three": [True, False, False, True]}
    models = [
        ModelResult(
            name, [Generation("p", "r", has_eos=True, matches_style=fit) for fit in fits], [], np.arange(len(fits))
        )
        for name, fits in columns.items()
    ]
    gained, same = "+25.0 points [-27.6, +60.9]", "+0.0 points [-32.7, +32.7]"  # none changed, and still an interval
    assert side_by_side.paired_changes(models) == [gained, same]
    row = side_by_side.comparison_table(models, {}).rows[-1]
    assert row == ["style accuracy, change from one, paired", "", gained, same, ""]
    assert side_by_side.paired_changes(models[:1]) == side_by_side.paired_changes(results()) == []


def test_comparison_says_how_benchmarks_were_asked():
    models = results()
    assert "prompts of the benchmarks" not in side_by_side.comparison_markdown("t", models, {})
    models[0].benchmark_prompts, models[1].benchmark_prompts = "plain text", "chat template"
    row = "| prompts of the benchmarks | plain text | chat template |"
    assert row in side_by_side.comparison_markdown("t", models, {})
