"""What ``estimate=true`` prints, and its count against a measured run."""

from types import SimpleNamespace

import hydra
import pytest
from rich.console import Console

from manners.config import compose as compose_module
from manners.config.compose import RunSpec
from manners.errors import MannersError
from manners.estimate import answer, profile
from manners.estimate.memory import estimate_peak_memory
from manners.models import memory
from manners.models.memory import ACTIVATIONS, CACHE, GRADIENTS, OPTIMIZER, REFERENCE, REWARD_MODEL
from manners.pipeline import dependencies
from manners.runtime import device
from manners.runtime.paths import CONF
from tests.configs import compose, tiny

CPU = device.Device("cpu", "32")
SMALL = [
    "dataset.max_rows=40", "hardware.accelerator=cpu", "evaluation.batch_size=4", "evaluation.max_new_tokens=4",
    "evaluation.prompts=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    out = tmp_path_factory.mktemp("qwen2")
    config = Qwen2Config(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return str(out)


@pytest.fixture(autouse=True)
def small_runtime(monkeypatch):
    """The process of the tests holds whatever they have imported and left behind."""
    monkeypatch.setattr(
        memory.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=10**9))
    )


@pytest.fixture
def ask(folder, tmp_path, monkeypatch):
    """estimate=true of a small run, on a machine of so many bytes; the measurement is given."""
    monkeypatch.setattr(profile, "profile", lambda *_: profile.Profile(10**9, 2 * 10**9, 0.5))
    overrides = [
        *SMALL, "adapter=none", f"model.name={folder}", f"output_dir={tmp_path}",
        "method.per_device_train_batch_size=16", "method.per_device_eval_batch_size=2",
    ]  # fmt: skip

    def ask(total, *more):
        monkeypatch.setattr(memory, "device_memory", lambda _: (total, total))
        console = Console(record=True, width=200)
        given = tiny([*overrides, *more])
        answer.report(RunSpec(compose_module.compose("train", given), given), console)
        return console.export_text()

    compose()  # registers the schemas
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):  # as within train.py
        yield ask
    assert list(tmp_path.iterdir()) == []


def estimated(text):
    return float(text.split("estimated")[1].split()[0])


def test_report_says_memory_by_parts_time_and_that_it_fits(ask):
    text = ask(10**11)
    assert "sft" in text and "peak memory in GB, reached in training" in text
    assert all(part in text for part in ("runtime", "weights", "activations", "logits", "optimizer states"))
    assert "measured in two steps on the longest rows  2.00" in text
    assert "9 steps of 0.50 s" in text  # 3 epochs of 40 rows in batches of 16
    assert text.rstrip().endswith("it fits")


def test_report_suggests_the_cheapest_overrides_that_would_fit(ask):
    whole = estimated(ask(10**11, "hardware.microbatch_size=16"))
    total = 1.045 + 0.8 * (whole - 1.045)  # half the rows need nearly half of what is above the libraries
    text = ask(int(total * 1e9), "hardware.microbatch_size=16")
    assert "two steps were not measured" in text and "it does not fit" in text
    suggestion, size = text.rstrip().splitlines()[-1].split("  (")
    assert suggestion == "add to the command: hardware.microbatch_size=8"
    assert float(size.split()[0]) <= total


def test_report_of_auto_splits_the_batch_until_it_fits(ask):
    whole = estimated(ask(10**11))
    total = 1.045 + 0.8 * (whole - 1.045)
    text = ask(int(total * 1e9))
    assert "with hardware.microbatch_size=8: the optimizer steps are those of the whole batch" in text
    assert estimated(text) <= total


def test_report_says_where_nothing_would_be_enough(ask):
    text = ask(10**8)
    assert "not even this would be enough: hardware.microbatch_size=" in text and "adapter=lora" in text


def test_report_refuses_methods_without_an_estimate():
    spec = RunSpec(SimpleNamespace(method=SimpleNamespace(name="dpo")), [])
    with pytest.raises(MannersError, match="estimate=true works for method=sft, reward, ppo, rloo, not for dpo"):
        answer.report(spec, Console())


def count(cfg, rows=4, reward_cfg=None):
    return estimate_peak_memory(cfg, CPU, answer.worst_case(cfg, CPU), rows, reward_cfg)


def test_estimate_of_lora_has_few_gradients_and_states(folder):
    full, lora = (count(compose(f"adapter={kind}", f"model.name={folder}", *SMALL)).parts for kind in ("none", "lora"))
    assert full[GRADIENTS] > 3 * lora[GRADIENTS]
    assert full[OPTIMIZER] == 2 * full[GRADIENTS]


def test_estimate_of_ppo_counts_reference_reward_model_and_cache(folder):
    overrides = ["method=ppo", f"model.name={folder}", "method.microbatch_tokens=256", *SMALL]
    reward_cfg = compose("method=reward", f"model.name={folder}", *SMALL)
    lora = count(compose("adapter=lora", *overrides, "method.batch_size=1024"), reward_cfg=reward_cfg)
    assert lora.phase == "sampling" and lora.parts[CACHE] > 0
    assert lora.parts[REWARD_MODEL] > 0 and REFERENCE not in lora.parts
    full = count(compose("adapter=none", *overrides, "method.batch_size=4"))
    assert full.parts[REFERENCE] > 0 and REWARD_MODEL not in full.parts


def test_estimate_shrinks_with_microbatch_and_checkpointing(folder):
    cfg = compose("adapter=lora", f"model.name={folder}", *SMALL)
    half = count(cfg, rows=32).parts[ACTIVATIONS]
    assert half < count(cfg, rows=64).parts[ACTIVATIONS]
    cfg.method.gradient_checkpointing = True
    assert count(cfg, rows=32).parts[ACTIVATIONS] < half


@pytest.mark.long
@pytest.mark.parametrize("method", ["sft", "reward", "ppo"])
def test_estimate_is_near_two_measured_steps(folder, method):
    """The smallest case: the libraries are most of it. Larger ones: experiments/memory.md."""
    more = ["method.batch_size=16", "method.num_eval_prompts=4"] if method == "ppo" else []
    cfg = compose(f"method={method}", "adapter=none", f"model.name={folder}", *SMALL, *more)
    reward_cfg = compose("method=reward", f"model.name={folder}", *SMALL) if method == "ppo" else None
    rows = 16 if method == "sft" else 4
    measured = profile.profile(cfg, dependencies.splits_of(cfg), rows, reward_cfg)
    count_above_libraries = count(cfg, rows, reward_cfg).total - 10**9
    assert measured.baseline + count_above_libraries == pytest.approx(measured.peak, rel=0.15)
    assert measured.seconds > 0


def test_profile_reports_why_its_process_failed(folder):
    cfg = compose(f"model.name={folder}", *SMALL, "model.chat_template=chatml")
    cfg.model.name = "./nowhere"
    with pytest.raises(MannersError, match=r"the profiling process ended without a result: .*no such folder"):
        profile.profile(cfg, dependencies.splits_of(cfg), 4, None)
