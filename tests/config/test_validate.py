"""Combinations that cannot work are refused with the override that mends them; what ships in conf/ is not refused."""

import json

import pytest

from manners.config import validate
from manners.errors import MannersError
from manners.runtime import paths
from tests.configs import changed, compose


def refusal(cfg):
    with pytest.raises(MannersError) as caught:
        validate.validate_config(cfg)
    return str(caught.value)


def choices(group):
    return sorted(path.stem for path in (paths.CONF / group).glob("*.yaml"))


def is_encoder(model):
    return "decoder: false" in (paths.CONF / "model" / f"{model}.yaml").read_text()


@pytest.mark.parametrize(
    "values, says",
    [
        (["adapter.kind=none", "adapter.quantization=nf4"], "use adapter=qlora, or adapter.quantization=none"),
        (["adapter.kind=lora", "adapter.quantization=nf4"], "is QLoRA: use adapter=qlora"),
        (["adapter.kind=qlora", "adapter.quantization=none"], "needs a quantized base"),
        (
            ["adapter.kind=qlora", "adapter.quantization=nf4", "hardware.accelerator=mps"],
            "use adapter=lora with hardware=mps",
        ),
        (["method.packing=true"], "method.group_by_length=false"),
        (["method.max_steps=0"], "nothing to train"),
        (["method.num_train_epochs=0"], "nothing to train"),
        (["evaluation.do_sample=true", "evaluation.temperature=0"], "evaluation.do_sample=false is greedy"),
        (["dataset.validation_share=0.5", "dataset.test_share=0.5"], "leave nothing to train on"),
    ],
)
def test_a_combination_that_cannot_work_says_what_to_type_instead(values, says):
    assert says in refusal(changed(*values))


@pytest.mark.parametrize(
    "choices, installed, says",
    [
        ([], (), "outputs/vllm/bin/pip install --editable '.[vllm]'"),
        ([], ("vllm",), "is not installed here"),  # without TRL it is no use
        (["hardware=cpu"], ("vllm", "trl"), "needs an NVIDIA GPU, and hardware.accelerator=cpu: hardware=cuda, or"),
        (["adapter=qlora", "policy_from=none"], ("vllm", "trl"), "adapter=lora, or method.generation_backend=auto"),
    ],
)
def test_vllm_is_refused_where_it_cannot_be(monkeypatch, choices, installed, says):
    monkeypatch.setattr(validate, "find_spec", lambda name: name if name in installed else None)
    validate.validate_config(compose("method=ppo", *choices))
    assert says in refusal(compose("method=ppo", "method.generation_backend=vllm", *choices))


def test_vllm_passes_where_it_is_installed_and_is_refused_once_torch_finds_no_gpu(monkeypatch):
    monkeypatch.setattr(validate, "find_spec", lambda name: name)
    cfg = compose("method=rloo", "method.generation_backend=vllm")
    validate.validate_config(cfg)
    from manners.pipeline.run import check_device
    from manners.runtime.device import Device

    check_device(cfg, Device("cuda", "bf16"))
    with pytest.raises(MannersError, match=r"there is none here: method\.generation=auto"):
        check_device(cfg, Device("cpu", "32"))


@pytest.mark.parametrize("model", ["bert", "minilm"])
def test_an_encoder_is_refused_where_replies_are_learned(model):
    said = refusal(compose(f"model={model}"))
    assert "is an encoder and cannot write replies" in said
    assert "model=tiny" in said


def test_a_method_whose_rows_the_dataset_lacks_names_the_datasets_that_have_them():
    cfg = compose("dataset=polite_helper")
    cfg.method.sample_type = "scored"
    having = r"needs 'scored' rows.*that have them: requests, stanford_politeness, strictbot\.$"
    with pytest.raises(MannersError, match=having):
        validate.validate_config(cfg)


@pytest.mark.parametrize(
    "override",
    [
        "method.learning_rate=-1e-4",
        "method.learning_rate=nan",
        "method.per_device_train_batch_size=0",
        "method.gradient_accumulation_steps=0",
        "method.max_length=4",
        "method.warmup_steps=-1",
        "method.weight_decay=-0.1",
        "method.max_grad_norm=-1",
        "method.eval_steps=0",
        "method.early_stopping_patience=-1",
        "adapter.r=0",
        "adapter.lora_dropout=1",
        "adapter.lora_dropout=nan",
        "dataset.test_share=-0.1",
        "dataset.validation_share=1.0",
        "dataset.max_rows=0",
        "evaluation.max_new_tokens=0",
        "evaluation.prompts=-1",
        "hardware.num_threads=0",
    ],
)
def test_a_number_out_of_its_range_is_refused_by_its_key(override):
    assert override.partition("=")[0] in refusal(changed(override))


@pytest.fixture
def twelve_rows(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": "Yes."}) + "\n" for i in range(12)))
    return f"dataset.path={path}"


def batch(size, accumulate=1):
    return [f"method.per_device_train_batch_size={size}", f"method.gradient_accumulation_steps={accumulate}"]


def test_a_batch_may_be_as_large_as_the_data_and_no_larger(twelve_rows):
    validate.validate_config(changed(twelve_rows, *batch(4, accumulate=3)))
    said = refusal(changed(twelve_rows, *batch(13)))
    assert "a batch of 13" in said
    assert "mine.jsonl has 12 rows" in said


def test_rows_that_are_only_shown_fill_no_batch(twelve_rows):
    validate.validate_config(changed(twelve_rows, *batch(13), "preview=true"))


@pytest.mark.parametrize("size, accumulate", [(13, 1), (5, 3), (1, 40)])
def test_what_a_too_large_batch_is_told_to_try_works(twelve_rows, size, accumulate):
    given = [twelve_rows, *batch(size, accumulate)]
    advice = refusal(changed(*given)).partition("Try ")[2].removesuffix(".").split()
    validate.validate_config(changed(*given, *advice))


def test_max_rows_counts_as_the_size_of_the_data():
    assert "has 4 rows" in refusal(changed("dataset.max_rows=4"))


def test_a_missing_file_is_refused_with_the_nearest_name(twelve_rows):
    said = refusal(changed(twelve_rows.replace("mine", "mien")))
    assert "there is no such file or folder. Did you mean 'mine.jsonl'?" in said


def test_the_default_config_passes():
    validate.validate_config(compose())


@pytest.mark.parametrize("study", sorted(path.stem for path in paths.EXPERIMENTS.glob("study/*.yaml")))
def test_every_recipe_passes(study):
    corpus = ["dataset.path=package:requests/requests.jsonl"] if study == "polite_gpt2" else []  # else a file by hand
    cfg = compose(f"study={study}", *corpus)
    validate.validate_config(cfg)
    assert cfg.experiment_name == study


@pytest.mark.parametrize("model", [m for m in choices("model") if not is_encoder(m)])
def test_every_decoder_passes(model):
    validate.validate_config(compose(f"model={model}"))


@pytest.mark.parametrize("dataset", choices("dataset"))
def test_every_dataset_passes(dataset, twelve_rows):
    more = {"jsonl": [twelve_rows, *batch(4)], "stanford_politeness": [twelve_rows, "method=reward", *batch(4)]}
    validate.validate_config(compose(f"dataset={dataset}", *more.get(dataset, [])))


@pytest.mark.parametrize("adapter", choices("adapter"))
def test_every_adapter_passes(adapter):
    validate.validate_config(compose(f"adapter={adapter}"))


@pytest.mark.parametrize("hardware", choices("hardware"))
def test_every_hardware_passes(hardware):
    validate.validate_config(compose(f"hardware={hardware}"))


@pytest.mark.parametrize(
    "choices, says",
    [
        (["method=ppo"], "with method=ppo leave it out"),
        (["hardware=mps"], "hardware=cpu, or leave it out"),
        ([], "needs a C++ compiler, and no-such-compiler is not here"),
    ],
)
def test_compiling_is_refused_where_it_cannot_be(monkeypatch, choices, says):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert says in refusal(compose(*choices, "hardware.compile=true"))


def test_and_taken_where_there_is_a_compiler(monkeypatch, tmp_path):
    (tmp_path / "c++").touch(mode=0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    monkeypatch.setattr(validate.sysconfig, "get_path", lambda _: str(tmp_path))
    assert "Python.h" in refusal(changed("hardware.compile=true"))
    (tmp_path / "Python.h").touch()
    validate.validate_config(changed("hardware.compile=true"))
