"""A job of a sweep gets its config without composing anew, where only values differ."""

import pytest

from manners.config.compose import compose, hydra_context, register
from manners.sweep.jobs import with_values


@pytest.fixture(autouse=True)
def registered():
    register()


def test_with_values_equals_composing():
    keys = ["seed", "method.learning_rate", "method.packing", "run_name", "method.lr_scheduler_type"]
    one = [f"{k}={v}" for k, v in zip(keys, ["1", "1e-3", "true", "a", "linear"], strict=True)]
    other = [f"{k}={v}" for k, v in zip(keys, ["2", "3e-5", "false", "'b, c'", "constant"], strict=True)]
    with hydra_context():
        first = compose("train", ["debug=quick", *one])
        before = first.copy()
        assert with_values(first, other) == compose("train", ["debug=quick", *other])
        assert first == before


@pytest.mark.parametrize(
    "override",
    [
        "method=reward",  # brings more than a value
        "debug=null",
        "seed=tomorrow",  # refused: composing says why
        "adapter.target_modules=[q_proj]",
    ],
)
def test_with_values_leaves_the_rest_to_composing(override):
    with hydra_context():
        assert with_values(compose("train", ["debug=quick", "seed=1"]), [override]) is None
