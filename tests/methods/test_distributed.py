"""Two devices, here two processes on a CPU, do what one does with the same batch, and resume after a kill."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

from manners.data.batching import ResumableBatches, collate, local_batch, validation_batches
from manners.data.tokenize import TokenizedExample
from tests import commands
from tests.methods import distributed_cases
from tests.methods.distributed_cases import BATCH_SIZE, CASES, ROWS, train_case
from tests.methods.test_sft import collate_rows, examples


def batches(rank: int, num_processes: int = 2) -> ResumableBatches:
    return ResumableBatches(examples(13), 4 // num_processes, collate_rows, 8, 2, 3, True, rank, num_processes)


def test_processes_split_each_batch_and_know_its_targets():
    one, first, second = list(batches(0, 1)), list(batches(0)), list(batches(1))
    assert len(one) == len(first) == len(second) == 16
    for full, a, b in zip(one, first, second, strict=True):
        assert full["step_num_targets"] == a["step_num_targets"] == b["step_num_targets"]
        assert full["tokens"] == a["tokens"] + b["tokens"]
        own = [part for part in (a, b) if "is_filler" not in part]
        rows = [[t for t in row.tolist() if t] for part in own for row in part["input_ids"]]
        assert sorted(rows) == sorted([t for t in row.tolist() if t] for row in full["input_ids"])
    with_filler = [i for i, batch in enumerate(second) if "is_filler" in batch]
    assert with_filler == [i for i, full in enumerate(one) if len(full["input_ids"]) == 1]


def test_local_batch_spreads_similar_lengths_over_processes():
    rows = [TokenizedExample([1] * n, [1] * n) for n in (3, 4, 8, 9)]
    shapes = [local_batch(rows, collate_rows, rank, 2)["input_ids"].shape for rank in (0, 1)]
    assert shapes == [(2, 8), (2, 9)]


def test_process_without_a_row_gets_a_filler_that_counts_nothing():
    example = TokenizedExample([5, 6, 7], [5, 6, 7])
    (batch,) = validation_batches([example], 1, collate_rows, rank=2, num_processes=3)
    assert batch["is_filler"] and batch["tokens"] == 0
    assert torch.equal(batch["input_ids"], collate([example], 0)["input_ids"])


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    """A folder with each case trained by one process, and another with it trained by two.

    Of the two, "full-fsdp" is killed on the way and resumes.
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
        train_case(model, one / name, name)
    commands.run_two_processes(Path(distributed_cases.__file__), str(model), str(two))
    return one, two


def metrics(file):
    """By step and name, without timings and padding, which depends on how rows are split."""
    logged = [(step, name, value) for step, values in json.loads(file.read_text()) for name, value in values.items()]
    return {(step, name): value for step, name, value in logged if "second" not in name and "padding" not in name}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_the_weights_of_one(trained, name):
    """So the mean is over the targets of both: a mean of the processes' means would differ at once."""
    one, two = (load_file(folder / f"{name}.safetensors") for folder in trained)
    assert one.keys() == two.keys()
    for key, weight in one.items():
        assert torch.allclose(two[key], weight, atol=1e-4), key


@pytest.mark.parametrize("name", CASES)
def test_two_processes_log_the_metrics_of_one(trained, name):
    one, two = (metrics(folder / f"{name}.json") for folder in trained)
    assert {n for _, n in one} >= {"eval/loss", "train/loss", "train/grad_norm", "train/tokens_seen"}
    assert one == {key: pytest.approx(value, rel=1e-3) for key, value in two.items()}
    assert one[2, "train/tokens_seen"] == two[2, "train/tokens_seen"]


def test_two_killed_processes_resume_exactly_with_own_dropout(trained):
    _, two = trained
    uninterrupted, killed = (load_file(two / f"{name}.safetensors") for name in ("dropout", "dropout-killed"))
    without = load_file(two / "lora-ddp.safetensors")
    assert all(torch.equal(uninterrupted[key], killed[key]) for key in uninterrupted)
    assert any(not torch.allclose(uninterrupted[key], without[key], atol=1e-3) for key in uninterrupted)


def test_cases_include_a_filler_batch():
    assert ROWS["train"] % BATCH_SIZE == 1 and ROWS["validation"] % BATCH_SIZE == 1
