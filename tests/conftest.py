"""Fixtures: a small model with random weights, the tokenizer of the tiny base, copied MLflow stores."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite may run in parallel
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
os.environ.pop("MLFLOW_TRACKING_URI", None)  # the tests have stores of their own
os.environ.pop("MAKELEVEL", None)  # under `make test`, a make that a test starts would print its directory, too
os.environ.pop("MAKEFLAGS", None)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job, whose children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings

# The same examples each time: a failure that comes and goes would be no one's. Others: pytest --hypothesis-seed=0
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

# These files train models or start processes. They go first, so that no worker is left alone with one at the end, and
# `make test-fast` leaves them out.
SLOW = (
    *("test_reward_runs", "test_run", "test_ppo_run", "test_ppo_variants", "test_dpo_run", "test_evaluate"),
    *("test_experiments", "test_default_run", "test_exam", "test_compile", "test_process_group", "test_distributed"),
    *("test_ppo_resume", "test_resume", "test_estimate", "test_many_jobs", "test_command", "test_hub_names"),
    *("test_main", "test_dpo", "test_trainer", "test_card", "test_script", "test_self_chat", "test_plan_run"),
    *("test_vllm", "test_memory", "test_registry", "test_generation", "test_dependencies", "test_folder"),
    "test_llama_cpp_tokens",
)


def pytest_collection_modifyitems(items):
    order = {name: i for i, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.stem, len(SLOW)))
    for item in items:
        if item.path.stem in order:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def stores_are_copied(tmp_path_factory):
    """Make every new MLflow store a copy of an empty one: see ``tests/stores.py``."""
    from manners.tracking import store
    from tests import stores

    base = tmp_path_factory.getbasetemp()
    os.environ[stores.TEMPLATE] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "empty.db")
    store.absolute_uri = stores.absolute_uri


@pytest.fixture(scope="session")
def tokenizer():
    from manners.models.tokenizer import load_tokenizer

    return load_tokenizer("tiny")


@pytest.fixture
def small_qwen2(tokenizer):
    """A random Qwen2 of two layers: fast enough to train in a test."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)
