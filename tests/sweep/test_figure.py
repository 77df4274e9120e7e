"""The figure of a sweep: what is on its axes."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from manners.sweep import figure
from manners.sweep.figure import axis_values, plot_sweep
from manners.sweep.jobs import SweepJob


@pytest.fixture
def studies(monkeypatch):
    """The studies that Optuna was asked to plot, by the plot's name."""
    plotted = {}

    def recorded(name):
        plot = getattr(figure.optuna_plots, name)

        def record(study, **kwargs):
            plotted[name] = study
            return plot(study, **kwargs)

        return record

    for name in ("plot_slice", "plot_parallel_coordinate"):
        monkeypatch.setattr(figure.optuna_plots, name, recorded(name))
    return plotted


def finished(metric, **choice):
    return SweepJob({key.replace("__", "."): value for key, value in choice.items()}, status="finished", metric=metric)


def test_axis_values_are_numbers_words_or_missing():
    assert axis_values(["1e-5", None, "1e-3"]) == ([1e-5, None, 1e-3], FloatDistribution(1e-5, 1e-3, log=True))
    assert axis_values(["4", "16"]) == ([4.0, 16.0], FloatDistribution(4, 16))
    assert axis_values(["lora", "none"]) == (["lora", "none"], CategoricalDistribution(["lora", "none"]))


def test_one_option_is_a_slice_with_a_point_for_each_seed(studies, tmp_path):
    jobs = [finished(i / 10, method__learning_rate=f"{i}e-3", seed=str(s)) for i in (1, 2) for s in (1, 2)]
    jobs.append(SweepJob({"method.learning_rate": "3e-3", "seed": "1"}, status="failed"))
    assert plot_sweep(jobs, "eval/loss", "minimize", tmp_path / "a.png") == [tmp_path / "a.png"]
    trials = studies["plot_slice"].trials
    assert [(t.params, t.value) for t in trials] == [({"method.learning_rate": i / 1e3}, i / 10) for i in (1, 1, 2, 2)]


def test_several_options_are_parallel_coordinates(studies, tmp_path):
    jobs = [finished(1.0, adapter="none"), finished(0.5, adapter="lora", adapter__r="8")]
    assert plot_sweep(jobs, "eval/loss", "minimize", tmp_path / "a.png")
    assert [t.params for t in studies["plot_parallel_coordinate"].trials] == [
        {"adapter": "none"},
        {"adapter": "lora", "adapter.r": 8.0},
    ]


def test_sweep_over_seeds_alone_has_no_figure(tmp_path):
    assert plot_sweep([finished(1.0, seed="1"), finished(2.0, seed="2")], "eval/loss", "minimize", tmp_path / "a") == []
    assert plot_sweep([], "eval/loss", "minimize", tmp_path / "a") == []
