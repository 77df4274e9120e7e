"""A mixture's rows: shares by weight, no row lost, held-out rows in turn and not trained on, each under its name."""

from collections import Counter

import pytest
from omegaconf import OmegaConf

from manners.config import schema
from manners.data.loading import load_splits
from manners.data.mixture import DATASET, dataset_configs, held_out_of_training, in_turn, mix_rows
from manners.data.types import Conversation
from manners.errors import MannersError
from tests.data.files import write


def rows(name, count):
    return [Conversation([{"role": "user", "content": f"{name} {i}"}], metadata={DATASET: name}) for i in range(count)]


def drawn(mixed):
    return Counter(row.metadata[DATASET] for row in mixed)


def test_shares_are_those_of_the_weights_and_no_row_is_lost():
    data = {"a": rows("a", 30), "b": rows("b", 7)}
    mixed = mix_rows(data, {"a": 3, "b": 1})
    assert drawn(mixed) == {"a": 30, "b": 10}
    times = Counter(row.messages[0]["content"] for row in mixed)
    assert {times[f"a {i}"] for i in range(30)} == {1}
    assert sorted(times[f"b {i}"] for i in range(7)) == [1, 1, 1, 1, 2, 2, 2]


def test_a_small_weight_repeats_the_other_dataset():
    assert drawn(mix_rows({"a": rows("a", 30), "b": rows("b", 10)}, {"a": 1, "b": 9})) == {"a": 30, "b": 270}


def test_without_weights_all_rows_come_once():
    assert drawn(mix_rows({"a": rows("a", 30), "b": rows("b", 7)}, {"a": None, "b": None})) == {"a": 30, "b": 7}


def test_a_weight_of_zero_trains_on_nothing_of_it():
    assert drawn(mix_rows({"a": rows("a", 3), "b": rows("b", 7)}, {"a": 0.5, "b": 0})) == {"a": 3}


def test_weights_too_far_apart_are_refused():
    with pytest.raises(MannersError, match="each of the 1 training rows of a 30,000 times"):
        mix_rows({"a": rows("a", 1), "b": rows("b", 3)}, {"a": 10_000, "b": 1})


def test_the_mixture_is_the_same_each_time():
    data = {"a": rows("a", 5), "b": rows("b", 13)}
    assert mix_rows(data, {"a": 2, "b": 1}) == mix_rows(data, {"a": 2, "b": 1})


def test_held_out_rows_come_from_each_dataset_in_turn():
    mixed = in_turn([rows("a", 3), rows("b", 1), rows("c", 2)])
    assert [row.messages[0]["content"] for row in mixed] == ["a 0", "b 0", "c 0", "a 1", "c 1", "a 2"]


def test_prompts_that_another_dataset_trains_on_are_not_held_out():
    ask = [{"role": "user", "content": "Why?"}]
    shared = Conversation([*ask, {"role": "assistant", "content": "So."}])
    other = Conversation([{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}])
    trained = Conversation([{"role": "user", "content": "WHY? "}, {"role": "assistant", "content": "Because."}])
    assert held_out_of_training([shared, other], {"b": [trained]}) == ([other], 1)


@pytest.fixture
def mixture(tmp_path):
    def config(**weights):
        entries = []
        for name, weight in weights.items():
            split = lambda i: "test" if i > 7 else "validation" if i > 6 else "train"  # noqa: E731
            made = [{"prompt": f"{name} {i}?", "completion": "Yes.", "split": split(i)} for i in range(10)]
            entries.append({"name": name, "path": str(write(tmp_path, *made, name=f"{name}.jsonl")), "weight": weight})
        written = {"path": "mix:", "mix": entries, "max_rows": 5}
        return OmegaConf.merge(OmegaConf.structured(schema.DatasetConfig), written)

    return config


def test_rows_of_files_are_mixed_split_and_named(mixture):
    splits = load_splits(mixture(one=1, two=2))
    assert drawn(splits.train) == {"one": 5, "two": 10}  # of max_rows=5 each
    assert [row.metadata[DATASET] for row in splits.test] == ["one", "two", "one", "two"]
    assert drawn(splits.validation) == {"one": 1, "two": 1}
    assert splits.mixture == [
        "one: 5 training rows: 33.3 % of the mixture",
        "two: 5 training rows, 2.0 times each in an epoch: 66.7 % of the mixture",
    ]


def test_an_entry_has_the_options_of_all_but_its_own(mixture):
    cfg = mixture(one=1, two=2)
    cfg.mix[1].max_rows = 2
    cfg.sample_types = ["scored"]
    (_, one), (weight, two) = dataset_configs(cfg).values()
    assert (one.max_rows, two.max_rows, weight) == (5, 2, 2)
    assert not one.mix and not one.sample_types  # what the mixture offers is no demand on each


def test_a_dataset_without_the_samples_of_the_method_is_named(mixture):
    with pytest.raises(MannersError, match=r"dataset.mix, one: .* no row of .*one.jsonl has a score"):
        load_splits(mixture(one=1), "scored")


def test_a_column_called_dataset_is_the_rows_own(mixture, tmp_path):
    rows_of_file = [{"prompt": f"{i}?", "completion": "Yes.", "dataset": ["mine"], "split": "train"} for i in range(3)]
    cfg = mixture(one=1)
    cfg.mix[0].path = str(write(tmp_path, *rows_of_file, name="own.jsonl"))
    row = load_splits(cfg).train[0]
    assert (row.metadata["dataset"], row.metadata[DATASET]) == (["mine"], "one")
