"""The search space of a sweep, from the command line and from yaml."""

import hydra
import pytest

from manners.errors import MannersError
from manners.runtime.paths import CONF
from manners.sweep import space
from manners.sweep.space import Dimension


@pytest.fixture(autouse=True, scope="module")
def hydra_initialized():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def read(*arguments, **sweep):
    return space.read_space(space.parse_arguments(list(arguments)), sweep)


def test_read_space_separates_lists_from_fixed_values():
    fixed, dimensions = read("seed=1,2", "method=sft", "adapter.r=range(2,9,3)", "+x=1")
    assert fixed == ["method=sft", "+x=1"]
    assert dimensions == [Dimension("seed", ("1", "2")), Dimension("adapter.r", ("2", "5", "8"))]


def test_read_space_keeps_scale_and_number_type_of_intervals():
    _, dimensions = read(
        "a=interval(0.5,2)", "b=tag(log,interval(1e-5,1e-2))", "c=int(interval(2,8))", "d=tag(log,int(interval(1,64)))"
    )
    assert dimensions == [
        Dimension("a", ("0.5", "2.0"), interval=True),
        Dimension("b", ("1e-05", "0.01"), interval=True, log=True),
        Dimension("c", ("2", "8"), interval=True, integer=True),
        Dimension("d", ("1", "64"), interval=True, log=True, integer=True),
    ]


def test_command_line_takes_precedence_over_yaml():
    fixed, dimensions = read("seed=7", "a=1,2", **{"seed": "choice(1,2)", "a": "choice(5,6)", "b": "choice(x,y)"})
    assert fixed == ["seed=7"]
    assert dimensions == [Dimension("a", ("1", "2")), Dimension("b", ("x", "y"))]


def test_expand_grid_varies_the_last_dimension_fastest():
    _, dimensions = read("a=1,2", "b=x,y")
    assert space.expand_grid(dimensions, {}) == [
        {"a": "1", "b": "x"},
        {"a": "1", "b": "y"},
        {"a": "2", "b": "x"},
        {"a": "2", "b": "y"},
    ]


def test_expand_grid_skips_conditional_dimensions_and_duplicates():
    _, dimensions = read(
        "adapter=lora,none", "adapter.r=4,8", **{"adapter.r": {"from": "choice(1)", "when": "adapter=lora"}}
    )
    assert space.expand_grid(dimensions, {}) == [
        {"adapter": "lora", "adapter.r": "4"},
        {"adapter": "lora", "adapter.r": "8"},
        {"adapter": "none"},
    ]


def test_condition_may_refer_to_a_fixed_override():
    _, dimensions = read("seed=1,2", **{"adapter.r": {"from": "choice(4,8)", "when": "adapter=lora"}})
    assert len(space.expand_grid(dimensions, {"adapter": "lora"})) == 4
    assert space.expand_grid(dimensions, {"adapter": "none"}) == [{"seed": "1"}, {"seed": "2"}]


def test_each_value_once_pairs_it_with_the_first_of_others():
    _, dimensions = read("a=1,2", "b=interval(0,1)", **{"c": {"from": "choice(7,8)", "when": "d=on"}})
    assert list(space.each_value_once(dimensions)) == [
        {"a": "1", "b": "0.0"},
        {"a": "2", "b": "0.0"},
        {"a": "1", "b": "1.0"},
        {"a": "1", "b": "0.0", "d": "on", "c": "7"},
        {"a": "1", "b": "0.0", "d": "on", "c": "8"},
    ]


@pytest.mark.parametrize(
    "arguments, sweep, message",
    [
        (["a=interval(2,1)"], {}, "from a smaller to a larger"),
        (["a=tag(log,interval(0,1))"], {}, "above 0"),
        ([], {"a": "3"}, "sweep.space.a=3 is one value"),
        ([], {"a": {"form": "choice(1,2)"}}, "a mapping has a line 'from"),
        ([], {"a": {"from": "choice(1,2)", "when": "lora"}}, "must be KEY=VALUE"),
        (["experiment=glob(nothing*)"], {}, "matches nothing"),
    ],
)
def test_read_space_refuses_impossible_dimensions(arguments, sweep, message):
    with pytest.raises(MannersError) as caught:
        read(*arguments, **sweep)
    assert message in str(caught.value)


def test_expand_grid_refuses_an_interval():
    _, dimensions = read("a=interval(0,1)")
    with pytest.raises(MannersError, match="sweep=search"):
        space.expand_grid(dimensions, {})
