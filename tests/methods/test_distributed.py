"""Two devices, here two processes on a CPU, do what one does with the same batch, and go on after a kill."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

from manners.data.batching import ResumableBatches, collate, shard, validation_batches
from manners.data.tokenize import TokenizedExample
from tests import commands
from tests.methods import dealt
from tests.methods.dealt import CASES, ROWS, SIZE, play
from tests.methods.test_sft import examples, together


def batches(rank: int, processes: int = 2) -> ResumableBatches:
    return ResumableBatches(examples(13), 4 // processes, together, 8, 2, 3, True, rank, processes)


def test_a_batch_is_dealt_out_once_and_every_process_knows_its_whole_weight():
    one, first, second = list(batches(0, 1)), list(batches(0)), list(batches(1))
    assert len(one) == len(first) == len(second) == 16
    for whole, a, b in zip(one, first, second, strict=True):
        assert whole["step_num_targets"] == a["step_num_targets"] == b["step_num_targets"]
        assert whole["tokens"] == a["tokens"] + b["tokens"]
        rows = [[t for t in row.tolist() if t] for part in (a, b) if "idle" not in part for row in part["input_ids"]]
        assert sorted(rows) == sorted([t for t in row.tolist() if t] for row in whole["input_ids"])
    assert [i for i, b in enumerate(second) if "idle" in b] == [
        i for i, whole in enumerate(one) if len(whole["input_ids"]) == 1
    ]


def test_neighbours_in_length_go_to_different_processes():
    rows = [TokenizedExample([1] * n, [1] * n) for n in (3, 4, 8, 9)]
    shapes = [shard(rows, together, rank, 2)["input_ids"].shape for rank in (0, 1)]
    assert shapes == [(2, 8), (2, 9)]


def test_a_process_with_no_row_of_its_own_computes_for_nothing():
    (batch,) = validation_batches([TokenizedExample([5, 6, 7], [5, 6, 7])], 1, together, rank=2, processes=3)
    assert batch["idle"] and batch["tokens"] == 0
    assert torch.equal(batch["input_ids"], collate([TokenizedExample([5, 6, 7], [5, 6, 7])], 0)["input_ids"])


@pytest.fixture(scope="module")
def played(tokenizer, tmp_path_factory):
    """A folder with what one process makes of each case, and another with what two make of it.

    Of the two, "whole-fsdp" is cut off on the way and goes on.
    """
    from transformers import Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model, one, two = (tmp_path_factory.mktemp(name) for name in ("model", "one", "two"))
    Qwen2ForCausalLM(config).save_pretrained(model)
    for name in CASES:
        play(model, one / name, name)
    commands.two(Path(dealt.__file__), str(model), str(two))
    return one, two


def metrics(file):
    """By step and name, less those of the clock and of the padding, which depends on how rows are dealt out."""
    said = [(step, name, value) for step, found in json.loads(file.read_text()) for name, value in found.items()]
    return {(step, name): value for step, name, value in said if "second" not in name and "fill" not in name}


@pytest.mark.parametrize("name", CASES)
def test_two_end_in_the_weights_of_one(played, name):
    """So the mean is over the tokens of all: a mean of the processes' means would differ in the first step already."""
    one, two = (load_file(folder / f"{name}.safetensors") for folder in played)
    assert one.keys() == two.keys()
    for key, weight in one.items():
        assert torch.allclose(two[key], weight, atol=1e-4), key


@pytest.mark.parametrize("name", CASES)
def test_and_in_its_metrics(played, name):
    one, two = (metrics(folder / f"{name}.json") for folder in played)
    assert {n for _, n in one} >= {"val/loss", "train/loss", "train/grad_norm", "train/tokens_seen"}
    assert one == {key: pytest.approx(value, rel=1e-3) for key, value in two.items()}
    assert one[2, "train/tokens_seen"] == two[2, "train/tokens_seen"]


def test_a_cut_off_run_of_two_ends_in_the_very_same_weights_where_each_has_a_dropout_of_its_own(played):
    _, two = played
    whole, cut = (load_file(two / f"{name}.safetensors") for name in ("dropout", "dropout-cut"))
    without = load_file(two / "lora-ddp.safetensors")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert any(not torch.allclose(whole[key], without[key], atol=1e-3) for key in whole)


def test_the_cases_leave_a_process_idle():
    assert ROWS["train"] % SIZE == 1 and ROWS["validation"] % SIZE == 1
