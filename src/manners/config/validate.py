"""Combinations that cannot work, refused before anything heavy is imported."""

import math
import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from manners.config.schema import STARTS_FROM, is_schema, options
from manners.data import sources
from manners.errors import MannersError, did_you_mean
from manners.runtime import launcher

COUNTABLE = 50_000_000  # bytes: a larger file is counted when it is read, not while the user waits


def validate_config(cfg: DictConfig) -> None:
    """Raise MannersError for the first thing in ``cfg`` that makes no sense, with the override that mends it."""
    require_values(cfg)
    check_choices(cfg)
    if "method" not in cfg:  # evaluate.py and chat.py open what was trained
        validate_saved_model_config(cfg)
        return
    check_ranges(cfg)
    check_method(cfg)
    check_start(cfg)
    check_online_rl(cfg)
    check_adapter(cfg)
    check_compile(cfg)
    launcher.check_processes(cfg)
    check_data(cfg)


def validate_saved_model_config(cfg: DictConfig) -> None:
    least = {"turns": 0, "chats": 1, "max_new_tokens": 1, "evaluation.max_new_tokens": 1, "evaluation.batch_size": 1}
    for key, minimum in least.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value < minimum:
            raise MannersError(f"{key}={value} must be at least {minimum}.", key)
    if cfg.hardware.devices != 1:
        raise MannersError(f"hardware.devices={cfg.hardware.devices}: here one process opens a model; leave it at 1.")
    if "adapter_scale" in cfg and not -1 <= cfg.adapter_scale <= 2:
        raise MannersError(f"adapter_scale={cfg.adapter_scale} must be from -1 to 2: 0 is the base, 1 the model as trained.")
    if "temperature" in cfg and cfg.do_sample and cfg.temperature <= 0:
        raise MannersError("temperature must be above 0 to sample; do_sample=false is greedy.")
    if "lm_eval" in cfg and cfg.lm_eval and find_spec("lm_eval") is None:
        install = ".venv/bin/pip install -c conf/constraints.txt -e '.[eval]'"
        raise MannersError(f"lm_eval: it is an extra, and not installed here: {install}")
    if cfg.get("dataset") and not OmegaConf.is_missing(cfg.dataset, "path"):
        sources.local_path(cfg.dataset.path)  # a path to nothing is answered at once


def require_values(cfg: DictConfig) -> None:
    for key in sorted(OmegaConf.missing_keys(cfg)):
        raise MannersError(f"{key} has no value, and there is no default: set {key}=VALUE.")


def check_choices(node: DictConfig, path: str = "") -> None:
    for name, field in options(OmegaConf.get_type(node)).items():
        value = node[name] if not OmegaConf.is_missing(node, name) else None
        choices = field.metadata.get("choices", ())
        if choices and value not in choices:
            raise MannersError(
                f"{path}{name}={value} is not a choice. {did_you_mean(str(value), choices)}", path + name
            )
        if isinstance(value, DictConfig) and is_schema(OmegaConf.get_type(value)):
            check_choices(value, f"{path}{name}.")


def check_method(cfg: DictConfig) -> None:
    view = "preference" if cfg.method.get("loss") == "pairwise" else cfg.method.sample_type
    if view not in cfg.dataset.sample_types:
        having = ", ".join(sources.datasets_offering(view)) or "none yet"
        raise MannersError(
            f"method={cfg.method.name} needs '{view}' rows, and {cfg.dataset.path} offers "
            f"{', '.join(cfg.dataset.sample_types)}. Datasets that have them: {having}."
        )
    if cfg.method.sample_type != "scored" and not cfg.model.decoder:
        raise MannersError(
            f"{cfg.model.name} is an encoder and cannot write replies: method={cfg.method.name} needs a decoder, "
            "such as model=tiny or model=gpt2."
        )
    if cfg.method.sample_type == "prompt" and cfg.dataset.loss_roles == "user":
        raise MannersError(
            f"method={cfg.method.name} answers as the assistant: dataset.loss_roles=user is for SFT.", "dataset.loss_roles"
        )
    if cfg.model.added_tokens and cfg.method.name != "sft":
        raise MannersError(
            f"model.added_tokens has embeddings that SFT trains, and method={cfg.method.name} does not keep: leave "
            "the marks as plain text, model.added_tokens=[].",
            "model.added_tokens",
        )
    if cfg.method.get("packing") and cfg.method.get("group_by_length"):
        raise MannersError(
            "packed rows are all of one length: with method.packing=true set method.group_by_length=false."
        )


def check_start(cfg: DictConfig) -> None:
    """A run is named only for what the method starts from, and the base is one that a policy can be merged into."""
    roles = STARTS_FROM.get(cfg.method.sample_type, ())
    place = "a policy alone" if roles else "the base model, not from a run"
    for role in ("policy", "reward"):
        if role not in roles and cfg[f"{role}_from"] not in ("auto", "none"):
            raise MannersError(f"{role}_from={cfg[f'{role}_from']}: method={cfg.method.name} starts from {place}.")
    if roles and cfg.adapter.kind == "qlora" and cfg.policy_from != "none":
        raise MannersError(
            "an SFT adapter merged into 4-bit weights is no longer the policy that SFT trained (peft#2321): "
            "adapter=lora, or policy_from=none to start from the base itself."
        )


def check_online_rl(cfg: DictConfig) -> None:
    """PPO and RLOO: batches that divide, and a critic that has where to sit."""
    m = cfg.method
    if m.view != "prompt":
        return
    check_rewards(cfg)
    check_vllm(cfg)
    per_prompt = m.get("num_generations", 1)
    if m.batch_size % per_prompt:
        raise MannersError(f"method.batch_size={m.batch_size} must be a multiple of num_generations={per_prompt}.")
    if m.num_mini_batches > m.batch_size:
        raise MannersError(f"method.num_mini_batches={m.num_mini_batches} is more than batch_size={m.batch_size}.")
    if m.get("critic") == "adapter" and cfg.adapter.kind == "none":
        raise MannersError("method.critic=adapter needs a LoRA policy: adapter=lora, or method.critic=head.")


def check_vllm(cfg: DictConfig) -> None:
    """An extra, for NVIDIA GPUs alone. Whether there is one here is seen when torch has been imported."""
    if cfg.method.generation_backend != "vllm":
        return
    if cfg.hardware.accelerator in ("cpu", "mps"):
        raise MannersError(
            f"method.generation_backend=vllm needs an NVIDIA GPU, and hardware.accelerator={cfg.hardware.accelerator}: "
            "hardware=cuda, or method.generation_backend=auto."
        )
    if find_spec("vllm") is None or find_spec("trl") is None:
        raise MannersError(
            "method.generation_backend=vllm: vLLM is not installed here. It wants other versions than conf/constraints.txt "
            "has, so give it an environment of its own: python3 -m venv outputs/vllm && outputs/vllm/bin/pip install "
            "--editable '.[vllm]'; then outputs/vllm/bin/python train.py ... Without it: method.generation_backend=auto."
        )
    if cfg.adapter.quantization != "none":
        raise MannersError(
            "method.generation_backend=vllm would merge the adapter into 4-bit weights, and sample from another policy than "
            "the one that trains (peft#2321): adapter=lora, or method.generation_backend=auto."
        )


def check_rewards(cfg: DictConfig) -> None:
    """Each part of the reward must be one that can be made; whether its function exists is seen before training."""
    parts = cfg.method.rewards
    if not isinstance(parts, DictConfig) or not parts:
        raise MannersError(f"method.rewards={parts} names no part: +method.rewards.NAME={{_target_:MODULE.FUNCTION}}.")
    for name, part in ((str(name), part) for name, part in parts.items()):
        if not isinstance(part, DictConfig):
            raise MannersError(
                f"method.rewards.{name}={part}: a part of the reward is {{weight:1.0,_target_:MODULE.FUNCTION}}, and "
                f"~method.rewards.{name} takes it out."
            )
        if cfg.reward_from == "none" and "_target_" not in part:
            raise MannersError(
                f"reward_from=none, and method.rewards.{name} names no function: add a part of your own with "
                f"+method.rewards.NAME={{_target_:MODULE.FUNCTION}}, and take this one out with ~method.rewards.{name}."
            )


def check_adapter(cfg: DictConfig) -> None:
    kind, quantization = cfg.adapter.kind, cfg.adapter.quantization
    if quantization != "none" and kind == "none":
        raise MannersError(
            f"weights in {quantization} cannot be trained themselves: use adapter=qlora, or "
            "adapter.quantization=none for full fine-tuning."
        )
    if kind == "qlora" and quantization == "none":
        raise MannersError("adapter=qlora needs a quantized base: adapter.quantization=nf4, or use adapter=lora.")
    if kind == "lora" and quantization != "none":
        raise MannersError(f"a LoRA over a base in {quantization} is QLoRA: use adapter=qlora.")
    if cfg.method.optim != "adamw_torch_fused" and cfg.hardware.accelerator == "mps":
        raise MannersError("bitsandbytes has no 8-bit optimizer for Apple's GPU: method.optim=adamw_torch_fused.")
    if quantization != "none" and cfg.hardware.accelerator == "mps":
        raise MannersError("bitsandbytes has no 4-bit kernels for Apple's GPU: use adapter=lora with hardware=mps.")


def check_compile(cfg: DictConfig) -> None:
    """For what Lightning trains; and torch writes C++, which something here must be able to compile."""
    if not cfg.hardware.compile:
        return
    if cfg.method.name not in ("sft", "reward"):
        raise MannersError(
            f"hardware.compile=true is for SFT and reward models: with method={cfg.method.name} leave it out."
        )
    if cfg.hardware.accelerator == "mps" or (cfg.hardware.accelerator == "auto" and sys.platform == "darwin"):
        raise MannersError("hardware.compile=true is for CPUs and NVIDIA GPUs: hardware=cpu, or leave it out.")
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(compiler):
        raise MannersError(f"hardware.compile=true needs a C++ compiler, and {compiler} is not here: install it.")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise MannersError(f"hardware.compile=true needs {header}: install Python's headers (apt install python3-dev).")


def check_data(cfg: DictConfig) -> None:
    """A file must be there; and a batch larger than the data would never be filled."""
    file = sources.local_path(cfg.dataset.path)
    if file is None or sources.is_parquet_folder(file):  # the hub's, which is counted when it is read
        return
    sizes = [f.stat().st_size for f in sources.data_files(file)]
    if sum(sizes) > COUNTABLE:
        return
    rows = sum(sources.count_rows(f) for f in sources.data_files(file))
    rows = min(rows, cfg.dataset.max_rows or rows)
    if cfg.preview or "per_device_train_batch_size" not in cfg.method:
        return
    steps = cfg.method.gradient_accumulation_steps * cfg.hardware.devices
    batch = cfg.method.per_device_train_batch_size * steps
    if 0 < rows < batch:  # what has no rows is refused by its reader, which knows why
        size = rows // (2 * steps)
        smaller = f"{size}" if size else "1 method.gradient_accumulation_steps=1"
        raise MannersError(
            f"a batch of {batch} (method.per_device_train_batch_size × method.gradient_accumulation_steps) is larger "
            f"than the data: {Path(file).name} has {rows} rows. Try method.per_device_train_batch_size={smaller}."
        )


# The least that a method's option may be, where the method has it.
AT_LEAST = {
    "learning_rate": 0,
    "value_learning_rate": 0,
    "warmup_steps": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 8,
    "eval_steps": 1,
    "save_steps": 1,
    "logging_steps": 1,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "early_stopping_patience": 0,
    "ranking_coef": 0,
    "corruption_ratio": 0,
    "beta": 0.001,
    "total_episodes": 1,
    "batch_size": 1,
    "num_generations": 2,
    "response_length": 1,
    "max_prompt_length": 8,
    "micro_batch_tokens": 1,
    "num_ppo_epochs": 1,
    "num_mini_batches": 1,
    "temperature": 0.01,
    "cliprange": 0,
    "cliprange_value": 0,
    "vf_coef": 0,
    "entropy_coef": 0,
    "kl_coef": 0,
    "kl_target": 0.01,
    "kl_horizon": 1,
    "target_kl": 0,
    "reward_clip": 0,
    "missing_eos_penalty": 0,
    "gamma": 0,
    "lam": 0,
    "min_sanity_accuracy": 0,
    "num_eval_prompts": 0,
    "log_samples_steps": 1,
    "log_samples": 1,
}
KEPT = ("deleted", "synthetic", "unreviewed")  # messages of OpenAssistant that are left out by default


def check_ranges(cfg: DictConfig) -> None:
    m, a, d = cfg.method, cfg.adapter, cfg.dataset
    at_least = {f"method.{name}": (m[name], least) for name, least in AT_LEAST.items() if name in m}
    at_least |= {
        "adapter.r": (a.r, 1),
        "evaluation.prompts": (cfg.evaluation.prompts, 0),
        "evaluation.test_prompts": (cfg.evaluation.test_prompts, 0),
        "evaluation.max_new_tokens": (cfg.evaluation.max_new_tokens, 1),
        "evaluation.batch_size": (cfg.evaluation.batch_size, 1),
    }
    for key, (value, least) in at_least.items():
        if value is not None and not least <= value < math.inf:  # nan compares with nothing, and is refused too
            raise MannersError(f"{key}={value} must be at least {least}.", key)
    shares = {
        "adapter.lora_dropout": a.lora_dropout,
        "dataset.validation_share": d.validation_share,
        "dataset.test_share": d.test_share,
    }
    for key, value in shares.items():
        if not 0 <= value < 1:
            raise MannersError(f"{key}={value} must be from 0 up to, but not including, 1.", key)
    if d.min_score_quantile is not None and not 0 <= d.min_score_quantile < 1:
        raise MannersError(f"dataset.min_score_quantile={d.min_score_quantile} is a quantile: from 0 up to 1.", "dataset.min_score_quantile")
    if d.prefix_words < 0:
        raise MannersError(f"dataset.prefix_words={d.prefix_words} must be at least 0.", "dataset.prefix_words")
    for word in d.keep_flagged:
        if word not in KEPT:
            raise MannersError(f"dataset.keep_flagged={list(d.keep_flagged)}: {did_you_mean(word, KEPT)}", "dataset.keep_flagged")
    if d.conversation_eos is not None and d.loss_roles == "assistant":
        raise MannersError(
            "dataset.conversation_eos is said by the user, whose turns carry no loss: dataset.loss_roles=user.",
            "dataset.conversation_eos",
        )
    if d.validation_share + d.test_share >= 1:
        raise MannersError("dataset.validation_share and dataset.test_share leave nothing to train on.")
    if cfg.hardware.num_threads is not None and cfg.hardware.num_threads < 1:
        raise MannersError(f"hardware.num_threads={cfg.hardware.num_threads} must be at least 1, or null.")
    if cfg.hardware.parts != "auto" and not (type(cfg.hardware.parts) is int and cfg.hardware.parts >= 1):
        raise MannersError(f"hardware.parts={cfg.hardware.parts} must be auto, or a number from 1 up.")
    if d.max_rows is not None and d.max_rows < 1:
        raise MannersError(f"dataset.max_rows={d.max_rows} must be at least 1, or null for all rows.")
    if "max_steps" in m and m.max_steps < -1:
        raise MannersError(f"method.max_steps={m.max_steps} must be above 0, or -1 to train for the epochs.")
    if "max_steps" in m and (m.max_steps == 0 or (m.max_steps < 0 and m.num_train_epochs <= 0)):
        raise MannersError("there is nothing to train: set method.num_train_epochs or method.max_steps above 0.")
    if cfg.evaluation.do_sample and cfg.evaluation.temperature <= 0:
        raise MannersError("evaluation.temperature must be above 0 to sample; evaluation.do_sample=false is greedy.")
