"""What a sweep varies, from the command line and from yaml."""

import hydra
import pytest

from manners.errors import MannersError
from manners.runtime.paths import CONF
from manners.sweep import space
from manners.sweep.space import Dimension


@pytest.fixture(autouse=True, scope="module")
def hydra_knows_the_configs():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def read(*arguments, **sweep):
    return space.read_space(space.parse_arguments(list(arguments)), sweep)


def test_lists_vary_and_single_values_are_shared():
    fixed, found = read("seed=1,2", "method=sft", "adapter.r=range(2,9,3)", "+x=1")
    assert fixed == ["method=sft", "+x=1"]
    assert found == [Dimension("seed", ("1", "2")), Dimension("adapter.r", ("2", "5", "8"))]


def test_an_interval_keeps_its_scale_and_its_kind_of_number():
    _, found = read(
        "a=interval(0.5,2)", "b=tag(log,interval(1e-5,1e-2))", "c=int(interval(2,8))", "d=tag(log,int(interval(1,64)))"
    )
    assert found == [
        Dimension("a", ("0.5", "2.0"), interval=True),
        Dimension("b", ("1e-05", "0.01"), interval=True, log=True),
        Dimension("c", ("2", "8"), interval=True, whole=True),
        Dimension("d", ("1", "64"), interval=True, log=True, whole=True),
    ]


def test_yaml_adds_what_the_command_line_does_not_say():
    fixed, found = read("seed=7", "a=1,2", **{"seed": "choice(1,2)", "a": "choice(5,6)", "b": "choice(x,y)"})
    assert fixed == ["seed=7"]
    assert found == [Dimension("a", ("1", "2")), Dimension("b", ("x", "y"))]


def test_a_grid_is_every_combination_once_the_last_varying_fastest():
    _, found = read("a=1,2", "b=x,y")
    assert space.expand_grid(found, {}) == [
        {"a": "1", "b": "x"},
        {"a": "1", "b": "y"},
        {"a": "2", "b": "x"},
        {"a": "2", "b": "y"},
    ]


def test_a_condition_leaves_a_dimension_out_and_no_job_comes_twice():
    _, found = read(
        "adapter=lora,none", "adapter.r=4,8", **{"adapter.r": {"from": "choice(1)", "when": "adapter=lora"}}
    )
    assert space.expand_grid(found, {}) == [
        {"adapter": "lora", "adapter.r": "4"},
        {"adapter": "lora", "adapter.r": "8"},
        {"adapter": "none"},
    ]


def test_a_condition_may_ask_of_what_all_jobs_share():
    _, found = read("seed=1,2", **{"adapter.r": {"from": "choice(4,8)", "when": "adapter=lora"}})
    assert len(space.expand_grid(found, {"adapter": "lora"})) == 4
    assert space.expand_grid(found, {"adapter": "none"}) == [{"seed": "1"}, {"seed": "2"}]


def test_each_value_is_looked_at_beside_the_others_first():
    _, found = read("a=1,2", "b=interval(0,1)", **{"c": {"from": "choice(7,8)", "when": "d=on"}})
    assert list(space.each_value_once(found)) == [
        {"a": "1", "b": "0.0"},
        {"a": "2", "b": "0.0"},
        {"a": "1", "b": "1.0"},
        {"a": "1", "b": "0.0", "d": "on", "c": "7"},
        {"a": "1", "b": "0.0", "d": "on", "c": "8"},
    ]


@pytest.mark.parametrize(
    "arguments, sweep, said",
    [
        (["a=interval(2,1)"], {}, "from a smaller to a larger"),
        (["a=tag(log,interval(0,1))"], {}, "above 0"),
        ([], {"a": "3"}, "sweep.space.a=3 is one value"),
        ([], {"a": {"form": "choice(1,2)"}}, "a mapping has a line 'from"),
        ([], {"a": {"from": "choice(1,2)", "when": "lora"}}, "must be KEY=VALUE"),
        (["study=glob(nothing*)"], {}, "matches nothing"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(arguments, sweep, said):
    with pytest.raises(MannersError) as caught:
        read(*arguments, **sweep)
    assert said in str(caught.value)


def test_a_grid_refuses_an_interval_and_names_what_would_take_it():
    _, found = read("a=interval(0,1)")
    with pytest.raises(MannersError, match="sweep=search"):
        space.expand_grid(found, {})
