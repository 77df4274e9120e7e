"""Combinations that cannot work are refused with the override that corrects them; what ships in conf/ is accepted."""

import json
import math
from dataclasses import is_dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from manners.config import schema, validate
from manners.data.loading import Splits
from manners.data.types import Conversation
from manners.errors import MannersError
from manners.runtime import paths
from tests.configs import changed, compose


def error_of(cfg):
    with pytest.raises(MannersError) as caught:
        validate.validate_config(cfg)
    return str(caught.value)


def choices(group):
    return sorted(path.stem for path in (paths.CONF / group).glob("*.yaml"))


def is_encoder(model):
    return "decoder: false" in (paths.CONF / "model" / f"{model}.yaml").read_text()


@pytest.mark.parametrize(
    "values, message",
    [
        (["adapter.kind=none", "adapter.quantization=nf4"], "use adapter=qlora, or adapter.quantization=none"),
        (["adapter.kind=lora", "adapter.quantization=nf4"], "is QLoRA: use adapter=qlora"),
        (["adapter.kind=qlora", "adapter.quantization=none"], "needs a quantized base"),
        (
            ["adapter.kind=qlora", "adapter.quantization=nf4", "hardware.accelerator=mps"],
            "use adapter=lora with hardware=mps",
        ),
        *[
            ([f"adapter.target_modules={v}"], "must be all-linear, or a list of names")
            for v in ("3", "[]", "[3]", "null")
        ],
        (["adapter.init_lora_weights=pisa"], "adapter.init_lora_weights=pisa is not a choice. Did you mean 'pissa'?"),
        (["adapter.init_lora_weights=eva"], "is not a choice"),
        (["adapter.init_lora_weights=false"], "is not a choice"),
        (["adapter.init_lora_weights=orthogonal", "adapter.r=3"], "needs an even rank: adapter.r=4"),
        (
            ["adapter.kind=qlora", "adapter.quantization=nf4", "adapter.init_lora_weights=olora"],
            "needs a base that is not quantized",
        ),
        (
            ["adapter.init_lora_weights=pissa", "hardware.strategy=fsdp", "hardware.devices=2"],
            "hardware.strategy=ddp",
        ),
        (["method.packing=true"], "method.group_by_length=false"),
        (["method.max_steps=0"], "max_steps=0 trains nothing"),
        (["method.num_train_epochs=0"], "nothing to train"),
        (["evaluation.temperature=0"], "evaluation.temperature=0.0 must be at least 0.01."),
        (["dataset.validation_share=0.5", "dataset.test_share=0.5"], "leave nothing to train on"),
        (["dataset.keep_flagged=[delted]"], "Did you mean 'deleted'?"),
        (["dataset.conversation_eos=<|end|>"], "dataset.loss_roles=user"),
        (["hardware.microbatch_size=0"], "must be auto, or a number of at least 1"),
        (["hardware.strategy=fsdp"], "set hardware.devices to 2 or more"),
        (["policy_from=some-run"], "method=sft starts from the base model, not from a run"),
    ],
)
def test_impossible_combination_is_refused_with_a_remedy(values, message):
    assert message in error_of(changed(*values))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["dataset.min_score_quantile=0.5", "method=reward"], "is about what SFT trains on"),
        (
            ["dataset.include_alternatives=true", "method=ppo"],
            "For the SFT run alone: policy_run_overrides=['dataset.include_alternatives=True']",
        ),
        (["dataset.conversation_eos=eos", "dataset.loss_roles=all", "method=dpo"], "is about what SFT trains on"),
        (["dataset.loss_roles=user", "method=kto"], "method=kto answers as the assistant"),
    ],
)
def test_what_only_sft_reads_is_refused_elsewhere(overrides, message):
    assert message in error_of(compose(*overrides))


@pytest.mark.parametrize(
    "values, message",
    [
        (["method.batch_size=10", "method.num_generations=4"], "must be a multiple of num_generations=4"),
        (["method.num_mini_batches=100"], "method.num_mini_batches=100 is more than batch_size=64"),
        (["hardware.microbatch_size=2"], "splits its batches by method.microbatch_tokens"),
        (["hardware.devices=2"], "torchrun --nproc-per-node 2 train.py method=rloo"),
        (["dataset.loss_roles=user"], "dataset.loss_roles=user is for SFT"),
        (["reward_from=none"], "method.rewards.model names no function"),
        (["method.rewards=null"], "names no component"),
        (["method.rewards={x: {target: my.f}}"], "the reward model has no option 'target'. Did you mean '_target_'?"),
        (
            ["method.rewards={x: {_target_: my.f, weight: true}}"],
            "method.rewards.x.weight=True must be a finite",
        ),
        *(
            ([f"method.rewards={{x: {{_target_: {target}}}}}"], f"method.rewards.x._target_={shown} must be MODULE.F")
            for target, shown in (
                ("f", "f"),
                ("./my.py:f", "./my.py:f"),
                ("5", "5"),
                ("null", "None"),
                ("a..b", "a..b"),
            )
        ),
        (["method.rewards={model: 1.0}"], "method.rewards.model=1.0: a component of the reward is"),
        (["method.rewards.model.weight=nan"], "method.rewards.model.weight=nan must be a finite number"),
        (["method.rewards.model.weight=high"], "method.rewards.model.weight=high must be a finite number"),
        (["method.rewards.model.weight=null"], "method.rewards.model.weight=None must be a finite number"),
        (["adapter=qlora"], "or policy_from=none to start from the base itself"),
        (["adapter.init_lora_weights=pissa"], "policy_run_overrides=['adapter.init_lora_weights=pissa']"),
        (
            ["adapter.init_lora_weights=olora", "policy_from=none"],
            "would not be the reference of method=rloo. Set adapter.init_lora_weights=true.",
        ),
    ],
)
def test_impossible_online_rl_run_is_refused(values, message):
    assert message in error_of(compose("method=rloo", *values))


@pytest.mark.parametrize(
    "value, message",
    [
        *[(f"{key}=", f"{key}= is empty") for key in ("policy_from", "dataset.path", "model.name", "output_dir")],
        ("+dataset.columns={prompt: q, completion: q}", "the column 'q' cannot be both prompt and completion"),
    ],
)
def test_empty_text_and_a_column_used_twice_are_refused(value, message):
    assert message in error_of(compose("method=ppo", value))


@pytest.mark.parametrize("name", ["a,b", "100%", "..", "a//b", "größe ♥", "", "x" * 300, "kl", "prompt", "has_eos"])
def test_reward_name_that_cannot_be_logged_is_refused(name):
    cfg = compose("method=ppo")
    cfg.method.rewards = {name: {"_target_": "my.f"}}
    message = error_of(cfg)
    assert message.startswith(f"method.rewards: the name {name!r} ") and "choose another" in message


def test_critic_adapter_needs_lora():
    assert "needs a LoRA policy" in error_of(compose("method=ppo", "method.critic=adapter", "adapter=none"))


@pytest.mark.parametrize(
    "choices, installed, message",
    [
        ([], (), "outputs/vllm/bin/pip install --editable '.[vllm]'"),
        ([], ("vllm",), "is not installed here"),  # it is of no use without TRL
        (["hardware=cpu"], ("vllm", "trl"), "needs an NVIDIA GPU, and hardware.accelerator=cpu: hardware=cuda, or"),
        (["adapter=qlora", "policy_from=none"], ("vllm", "trl"), "adapter=lora, or method.generation_backend=auto"),
    ],
)
def test_vllm_is_refused_where_it_cannot_run(monkeypatch, choices, installed, message):
    monkeypatch.setattr(validate, "find_spec", lambda name: name if name in installed else None)
    validate.validate_config(compose("method=ppo", *choices))
    assert message in error_of(compose("method=ppo", "method.generation_backend=vllm", *choices))


def test_installed_vllm_passes_until_torch_finds_no_gpu(monkeypatch):
    monkeypatch.setattr(validate, "find_spec", lambda name: name)
    cfg = compose("method=rloo", "method.generation_backend=vllm")
    validate.validate_config(cfg)
    from manners.pipeline.run import check_before_training
    from manners.runtime.device import Device

    check_before_training(cfg, Device("cuda", "bf16"))
    with pytest.raises(MannersError, match=r"method\.generation_backend=auto"):
        check_before_training(cfg, Device("cpu", "32"))


@pytest.mark.parametrize("model", ["bert", "minilm"])
def test_encoder_is_refused_for_generating_methods(model):
    error = error_of(compose(f"model={model}"))
    assert "is an encoder and cannot write replies" in error
    assert "model=tiny" in error


def test_missing_sample_type_names_the_datasets_that_have_it():
    cfg = compose("dataset=oasst1", "method=reward")
    message = r"needs 'scored' samples.*that have them: requests, stanford_politeness, strictbot, strictbot_tiny, "
    with pytest.raises(MannersError, match=message + r"style_labels\.$"):
        validate.validate_config(cfg)


def values_out_of_range():
    """For each limit of each option: a method whose config has the option, its key, and a value beyond the limit."""
    for method in ("sft", "reward", "dpo", "kto", "ppo", "rloo"):
        cfg = compose(f"method={method}")
        groups = (
            [name for name in cfg if is_dataclass(OmegaConf.get_type(cfg[name]))] if method == "sft" else ["method"]
        )
        for group in groups:
            for name, field in schema.options(OmegaConf.get_type(cfg[group])).items():
                for value in beyond_limits(field):
                    yield method, f"{group}.{name}", value


def beyond_limits(field):
    limits = {name: value for name in ("ge", "gt", "le", "lt") if (value := field.metadata.get(name)) is not None}
    is_float = "float" in str(field.type)
    step = 1e-4 if is_float else 1
    values = [limit + {"ge": -step, "gt": 0, "le": step, "lt": 0}[name] for name, limit in limits.items()]
    return [*values, math.nan] if limits and is_float else values


@pytest.mark.parametrize("method, key, value", values_out_of_range())
def test_number_out_of_range_is_refused_by_its_key(method, key, value):
    cfg = compose(f"method={method}")
    OmegaConf.update(cfg, key, value)
    with pytest.raises(MannersError, match=f"^{key}={OmegaConf.select(cfg, key)} must be ") as caught:
        validate.validate_config(cfg)
    assert caught.value.key == key


@pytest.fixture
def twelve_rows(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": "Yes."}) + "\n" for i in range(12)))
    return f"dataset.path={path}"


def batch(size, accumulate=1):
    return [f"method.per_device_train_batch_size={size}", f"method.gradient_accumulation_steps={accumulate}"]


def check_rows(*overrides):
    cfg, row = changed(*overrides), Conversation([{"role": "user", "content": "?"}])
    validate.check_rows(cfg, Splits(train=[row] * (cfg.dataset.max_rows or 12), validation=[row]))


def rows_error(*overrides):
    with pytest.raises(MannersError) as caught:
        check_rows(*overrides)
    return str(caught.value)


def test_batch_may_be_as_large_as_the_data_and_no_larger(twelve_rows):
    check_rows(twelve_rows, *batch(4, accumulate=3))
    error = rows_error(twelve_rows, *batch(13))
    assert "a batch of 13" in error
    assert "mine.jsonl has 12 training rows" in error


def test_preview_does_not_check_the_batch_size(twelve_rows):
    check_rows(twelve_rows, *batch(13), "preview=true")


@pytest.mark.parametrize("size, accumulate", [(13, 1), (5, 3), (1, 40)])
def test_advice_for_a_too_large_batch_works(twelve_rows, size, accumulate):
    overrides = [twelve_rows, *batch(size, accumulate)]
    advice = rows_error(*overrides).partition("Try ")[2].removesuffix(".").split()
    check_rows(*overrides, *advice)


def test_max_rows_counts_as_the_size_of_the_data():
    assert "has 4 training rows" in rows_error("dataset.max_rows=4")


def test_rows_to_train_on_and_to_hold_out_are_required():
    row = Conversation([{"role": "user", "content": "?"}])
    for splits, message in ((Splits(test=[row]), "it has no training rows"), (Splits([row] * 9), "no rows are held")):
        with pytest.raises(MannersError, match=message):
            validate.check_rows(changed(), splits)


def test_rows_that_are_all_held_out_or_all_alike_say_what_helps():
    row = Conversation([{"role": "user", "content": "?"}])
    named = replace(row, metadata={"split": "test"})
    for splits, message in ((Splits(test=[named]), "give some 'split': 'train'"), (Splits([row] * 9), "other prompts")):
        with pytest.raises(MannersError, match=message):
            validate.check_rows(changed(), splits)


def test_column_that_no_row_has_a_use_for_is_refused():
    assert "no field 'promt' to be named. Did you mean 'prompt'?" in error_of(
        changed("dataset.columns={promt: question}")
    )


def test_missing_file_is_refused_with_the_nearest_name(twelve_rows):
    error = error_of(changed(twelve_rows.replace("mine", "mien")))
    assert "Did you mean 'mine.jsonl'?" in error


def test_default_config_passes():
    validate.validate_config(compose())


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_recipe_passes(experiment):
    politeness = experiment.startswith("polite_gpt2") and "tiny" not in experiment
    corpus = ["dataset.path=package:requests/requests.jsonl"] if politeness else []  # else a file of one's own
    cfg = compose(f"experiment={experiment}", *corpus)
    validate.validate_config(cfg)
    assert experiment.startswith(cfg.experiment_name)


@pytest.mark.parametrize("model", [m for m in choices("model") if not is_encoder(m)])
def test_every_decoder_passes(model):
    validate.validate_config(compose(f"model={model}"))


@pytest.mark.parametrize("dataset", choices("dataset"))
def test_every_dataset_passes(dataset, twelve_rows):
    more = {"style_labels": ["method=reward"], "jsonl": [twelve_rows, *batch(4)]}
    more |= {
        "stanford_politeness": [twelve_rows, "method=reward", *batch(4)],
        "mix": ["dataset.mix=[{name: strictbot}]"],
    }
    more |= {"distilled": ["dataset.path=package:polite_helper/train.jsonl"]}  # its own file has to be made
    validate.validate_config(compose(f"dataset={dataset}", *more.get(dataset, [])))


@pytest.mark.parametrize("adapter", choices("adapter"))
def test_every_adapter_passes(adapter):
    method = ["method=reward", "method.ranking_coef=0"] if adapter == "frozen" else []
    validate.validate_config(compose(f"adapter={adapter}", *method))


@pytest.mark.parametrize("hardware", choices("hardware"))
def test_every_hardware_passes(hardware):
    validate.validate_config(compose(f"hardware={hardware}"))


@pytest.mark.parametrize("sweep", choices("sweep"))
def test_every_sweep_passes(sweep):
    validate.validate_config(compose(f"sweep={sweep}"))


@pytest.mark.parametrize(
    "choices, message",
    [
        (["method=ppo"], "with method=ppo leave it out"),
        (["hardware=mps"], "hardware=cpu, or leave it out"),
        ([], "needs a C++ compiler, and no-such-compiler is not installed"),
    ],
)
def test_compile_is_refused_where_it_cannot_work(monkeypatch, choices, message):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert message in error_of(compose(*choices, "hardware.compile=true"))


def test_compile_needs_a_compiler_and_pythons_headers(monkeypatch, tmp_path):
    (tmp_path / "c++").touch(mode=0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    monkeypatch.setattr(validate.sysconfig, "get_path", lambda _: str(tmp_path))
    assert "Python.h" in error_of(changed("hardware.compile=true"))
    (tmp_path / "Python.h").touch()
    validate.validate_config(changed("hardware.compile=true"))


# --- Room for prompts beside new tokens ---


@given(st.integers(8, 100_000), st.integers(1, 200_000))
def test_new_tokens_leave_an_eighth_of_the_context(context, max_new_tokens):
    cfg = OmegaConf.create({"evaluation": {"max_new_tokens": max_new_tokens}})
    if context - max_new_tokens >= context / 8:
        validate.check_room_for_prompts(cfg, context, "tiny")
        return
    with pytest.raises(MannersError, match=r"^evaluation\.max_new_tokens=\d+ leaves no room for prompts"):
        validate.check_room_for_prompts(cfg, context, "tiny")


@pytest.mark.parametrize(("model", "most"), [("tiny", 448), ("gpt2", 112)])
def test_new_tokens_near_a_local_models_context_are_refused(tmp_path, model, most):
    (tmp_path / "config.json").write_text('{"n_positions": 128}')
    name = "tiny" if model == "tiny" else str(tmp_path)
    overrides = ["dataset=polite_helper", f"model.name={name}"]
    validate.validate_config(compose(*overrides, f"evaluation.max_new_tokens={most}"))
    with pytest.raises(MannersError, match=rf"can read: evaluation\.max_new_tokens={most} or less\."):
        validate.validate_config(compose(*overrides, f"evaluation.max_new_tokens={most + 1}"))
